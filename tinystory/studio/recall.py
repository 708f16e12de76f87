"""What the model thought of the story on the desk: positions, contexts and logits for the commands that look back."""

import re
from typing import TYPE_CHECKING

from tinystory.decoding import Request
from tinystory.errors import UsageError
from tinystory.safe.reading import shown
from tinystory.story.lookback import decoder_of, request_of, written_ids
from tinystory.story.tracing import TurnLogits
from tinystory.story.tree import Turn
from tinystory.studio.studio import Studio

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "NEXT",
    "check_own",
    "desk_ids",
    "eos_ids",
    "index_of",
    "logits_at",
    "place",
    "quoted",
    "story_request",
    "telling",
    "token_name",
    "whole_story",
]  # fmt: skip

NEXT = "next"
"""For a position: the token after the story."""

_CONTEXT = 60


def desk_ids(studio: Studio) -> tuple[int, ...]:
    """The tokens of the story on the desk for the model in use; BOS alone for a blank page."""
    return studio.token_ids or tuple(studio.backend.encode("", bos=True))


def eos_ids(studio: Studio) -> frozenset[int]:
    """The tokens that end a story."""
    return studio.backend.tokenizer.eos_ids


def whole_story(studio: Studio) -> tuple[int, ...]:
    """The tokens of the story on the desk, and the end where the model has come to it."""
    turn, ends = studio.tree.turn, eos_ids(studio)
    return (*desk_ids(studio), min(ends)) if turn is not None and turn.ended and ends else desk_ids(studio)


def index_of(studio: Studio, position: str, origin: str, *, beyond: bool = False) -> int:
    """The index among `desk_ids` of a position as users count: from 1 without BOS, or back from -1.

    Args:
        studio: with the desk.
        position: as typed.
        origin: the command, for messages.
        beyond: whether the place after the story, `next`, is one.

    Raises:
        UsageError: there is no such token, or nothing before it.
    """
    ids = desk_ids(studio)
    n_bos = n_bos_of(studio, ids)
    n_tokens = len(ids) - n_bos
    if beyond and position == NEXT:
        index = len(ids)
    else:
        if not n_tokens:
            raise UsageError(f"{origin}: the page is blank; write something first")
        number = int(position) if re.fullmatch(r"[+-]?\d{1,9}", position) else 0
        if not 1 <= abs(number) <= n_tokens:
            after = f", or {NEXT}" if beyond else ""
            limits = f"from 1 to {n_tokens:,}, from the end -1 to -{n_tokens:,}{after}"
            raise UsageError(f"{origin}: POS is {limits}; not {shown(position[:20])}")
        index = number + n_bos - 1 if number > 0 else len(ids) + number
    if index == 0:
        raise UsageError(f"{origin}: this vocabulary has no BOS, so the model saw nothing before the first token")
    return index


def place(studio: Studio, index: int) -> str:
    """Where an index is, in words."""
    ids = desk_ids(studio)
    n_bos = n_bos_of(studio, ids)
    before = " ".join(studio.backend.detokenize(ids[:index])[-2 * _CONTEXT :].split())
    shown = before if len(before) <= _CONTEXT else f"…{before[-_CONTEXT:].lstrip()}"
    where = f"token {index - n_bos + 1:,} of {len(ids) - n_bos:,}" if index < len(ids) else "the next token"
    return f"{where}, after “{shown}”" if shown else f"{where}, at the beginning"


def logits_at(studio: Studio, index: int) -> "Tensor":
    """What the model in use thinks before an index of the story on the desk; (V,)."""
    studio.backend.wait(lambda: False)
    ids = desk_ids(studio)[:index]
    return studio.backend.logits((*ids, ids[0]), index)[0]  # the last id only says that there is one to come


def telling(studio: Studio, turn: Turn) -> TurnLogits:
    """A written turn as the engine saw it: decoder, request, tokens, logits.

    Raises:
        UsageError: it was typed, another model has written it, or a search has.
    """
    written = turn.written
    if written is None:
        raise UsageError(f"turn {turn.id} was typed; no decoder has picked anything there")
    check_own(studio, turn)
    tokenizer = studio.backend.tokenizer
    decoder = decoder_of(written, studio.registry, tokenizer)
    if decoder.search is not None:
        raise UsageError(
            f"turn {turn.id} was written by a search, {decoder.search.name}: there is no funnel to look into,"
            " only stages that pick token by token have one"
        )
    request = request_of(studio.tree, turn.id, tokenizer, studio.backend.session)
    ids = written_ids(studio.tree, turn.id, tokenizer)
    return decoder, request, ids, studio.backend.logits(ids, len(request.prompt_ids))


def story_request(studio: Studio) -> tuple[Request, tuple[int, ...]]:
    """The story on the desk as one request for what follows its writer's beginning, and its tokens.

    Raises:
        UsageError: nothing follows, or the tokens are of another vocabulary.
    """
    turn = studio.tree.turn
    if turn is None:
        raise UsageError("the page is blank; write something first")
    if turn.vocabulary != studio.backend.vocabulary:
        raise UsageError("the story is in the tokens of another model; /tree and /model bring that one back")
    ids = whole_story(studio)
    n_prompt = studio.tree.n_prompt(turn.id)
    if len(ids) == n_prompt:
        raise UsageError("the model has written nothing here yet; Enter lets it go on")
    backend = studio.backend
    return Request(ids[:n_prompt], len(ids) - n_prompt, 0, vocabulary=backend.tokenizer, opener=backend.session), ids


def check_own(studio: Studio, turn: Turn) -> None:
    """Raise UsageError where another model than the one in use has written a turn; waits for the model."""
    studio.backend.wait(lambda: False)
    written = turn.written
    if written is not None and written.model_hash != studio.backend.model_hash():
        same = " of that name" if written.model == studio.backend.name else f"; /model {written.model} brings it back"
        raise UsageError(f"turn {turn.id} was written by another model{same}: what it thought is not known here")


def token_name(studio: Studio, token_id: int) -> str:
    """A token for the eye: its text in quotes, or what it does."""
    return "(the end)" if token_id in eos_ids(studio) else quoted(studio.backend.token_text(token_id))


def quoted(text: str) -> str:
    r"""In double quotes, with \n, \t and \" escaped, as commands read it.

    >>> print(quoted(' "\n'))
    " \"\n"
    """
    for character, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\t", "\\t")):
        text = text.replace(character, escaped)
    return f'"{text}"'


def n_bos_of(studio: Studio, ids: tuple[int, ...]) -> int:
    bos = studio.backend.encode("", bos=True)
    return len(bos) if ids[: len(bos)] == tuple(bos) else 0
