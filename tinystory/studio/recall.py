"""Find tokens of the story on the desk and their logits, for the commands that show how a story was written."""

import re
from typing import TYPE_CHECKING

from tinystory.decoding import Request
from tinystory.errors import UsageError
from tinystory.safe.reading import shown
from tinystory.story.lookback import decoder_of, request_of, written_ids
from tinystory.story.tracing import TurnLogits
from tinystory.story.tree import Turn
from tinystory.studio.studio import Studio
from tinystory.studio.turn_request import TurnRequest

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "NEXT",
    "check_same_model",
    "desk_ids",
    "desk_request",
    "eos_ids",
    "index_of",
    "logits_at",
    "n_bos_of",
    "place",
    "quoted",
    "token_name",
    "turn_logits",
    "whole_story",
    "words_before",
]  # fmt: skip

NEXT = "next"
"""The position of the token after the story, as users type it."""

_CONTEXT = 60
"""The number of characters of the story that are shown to name a place."""


def desk_ids(studio: Studio) -> tuple[int, ...]:
    """Return the tokens of the story on the desk in the present vocabulary; only BOS for a blank page."""
    return studio.token_ids or tuple(studio.backend.encode("", bos=True))


def eos_ids(studio: Studio) -> frozenset[int]:
    """Return the token ids with which the model ends a story."""
    return studio.backend.tokenizer.eos_ids


def whole_story(studio: Studio) -> tuple[int, ...]:
    """Return the tokens of the story on the desk, with an EOS id if the model has ended it."""
    turn, ends = studio.tree.turn, eos_ids(studio)
    return (*desk_ids(studio), min(ends)) if turn is not None and turn.ended and ends else desk_ids(studio)


def index_of(studio: Studio, position: str, origin: str, *, beyond: bool = False) -> int:
    """Return the index in `desk_ids` of a position as users count: 1, 2 … without BOS, or -1, -2 … from the end.

    Args:
        studio: the studio with the story on the desk.
        position: the position as the user typed it.
        origin: the command, for messages.
        beyond: True if the position may be `next`, the token after the story.

    Raises:
        UsageError: there is no such token, or no token before it.
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
        raise UsageError(f"{origin}: this vocabulary has no BOS, so there was no context before the first token")
    return index


def place(studio: Studio, index: int) -> str:
    """Return in words where an index of `desk_ids` is."""
    ids = desk_ids(studio)
    n_bos = n_bos_of(studio, ids)
    excerpt = _last_words(studio.backend.detokenize(ids[:index]))
    where = f"token {index - n_bos + 1:,} of {len(ids) - n_bos:,}" if index < len(ids) else "the next token"
    return f"{where}, after “{excerpt}”" if excerpt else f"{where}, at the beginning"


def words_before(studio: Studio, request: TurnRequest) -> str:
    """Return the last words before what a turn changes, as /pick and /edit do; empty for a turn that goes on."""
    before = studio.story_request(request).prompt.removesuffix(request.ahead)
    if len(before) >= len(studio.tree.text(request.parent)):
        return ""
    return _last_words(before) + " " * before[-1:].isspace()


def _last_words(text: str) -> str:
    """Return the end of a text on one line."""
    end = " ".join(text[-2 * _CONTEXT :].split())
    return end if len(end) <= _CONTEXT else f"…{end[-_CONTEXT:].lstrip()}"


def logits_at(studio: Studio, index: int) -> "Tensor":
    """Compute the (V,) logits of the present model for an index of the story on the desk."""
    studio.backend.wait(lambda: False)
    ids = desk_ids(studio)[:index]
    return studio.backend.logits((*ids, ids[0]), index)[0]  # the last id is only predicted, so any id will do


def turn_logits(studio: Studio, turn: Turn) -> TurnLogits:
    """Return the decoder and the request that wrote a turn, and its tokens and logits.

    Raises:
        UsageError: no model has written the turn, or another model or a search has.
    """
    written = turn.written
    if written is None:
        raise UsageError(f"turn {turn.id} was typed; no decoder has picked tokens there")
    check_same_model(studio, turn)
    tokenizer = studio.backend.tokenizer
    decoder = decoder_of(written, studio.registry, tokenizer)
    if decoder.search is not None:
        raise UsageError(
            f"turn {turn.id} was written by a search, {decoder.search.name}: only stages that pick token by token "
            "can be traced"
        )
    request = request_of(studio.tree, turn.id, tokenizer, studio.backend.session)
    ids = written_ids(studio.tree, turn.id, tokenizer)
    return decoder, request, ids, studio.backend.logits(ids, len(request.prompt_ids))


def desk_request(studio: Studio) -> tuple[Request, tuple[int, ...]]:
    """Return one request for all that follows the prompt of the story on the desk, and the story's tokens.

    Raises:
        UsageError: nothing follows the prompt, or the story is in another vocabulary.
    """
    turn = studio.tree.turn
    if turn is None:
        raise UsageError("the page is blank; write something first")
    if turn.vocabulary != studio.backend.vocabulary:
        raise UsageError("the story is in the vocabulary of another model; open that model again with /model NAME")
    ids = whole_story(studio)
    n_prompt = studio.tree.n_prompt(turn.id)
    if len(ids) == n_prompt:
        raise UsageError("the model has written nothing here yet; Enter lets it go on")
    backend = studio.backend
    return Request(ids[:n_prompt], len(ids) - n_prompt, 0, vocabulary=backend.tokenizer, opener=backend.session), ids


def check_same_model(studio: Studio, turn: Turn) -> None:
    """Wait for the model; raise UsageError if another model has written the turn."""
    studio.backend.wait(lambda: False)
    written = turn.written
    if written is not None and written.model_hash != studio.backend.model_hash():
        hint = " of that name" if written.model == studio.backend.name else f"; /model {written.model} brings it back"
        raise UsageError(f"turn {turn.id} was written by another model{hint}: its logits cannot be computed here")


def token_name(studio: Studio, token_id: int) -> str:
    """Return the text of a token in quotes, or "(the end)" for an EOS."""
    return "(the end)" if token_id in eos_ids(studio) else quoted(studio.backend.token_text(token_id))


def quoted(text: str) -> str:
    r"""Return a text in double quotes, with \n, \t and \" escaped, as commands read it.

    >>> print(quoted(' "\n'))
    " \"\n"
    """
    for character, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\t", "\\t")):
        text = text.replace(character, escaped)
    return f'"{text}"'


def n_bos_of(studio: Studio, ids: tuple[int, ...]) -> int:
    """Return the number of special tokens with which the ids begin: usually 1, BOS, or 0."""
    return studio.backend.tokenizer.n_before_text(ids)
