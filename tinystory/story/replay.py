"""Replay: does each turn of a session come about as it is written down? Knows no file and no terminal.

A turn by a chain is picked again token by token, the recorded past given, so that a numerical tie changes one token
and not the rest. A search does not pick one by one: it is run again, and every difference counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tinystory.checkpoint.shipped import SHIPPED_MODELS
from tinystory.decoding import Decoder, Session, common_prefix
from tinystory.decoding.plugins import Registry
from tinystory.errors import UsageError
from tinystory.session.loading import LoadedModel
from tinystory.story.lookback import decoder_of, request_of, written_ids
from tinystory.story.tracing import Pick, retrace, story_logits
from tinystory.story.tree import StoryTree, Turn, Written
from tinystory.writing.generate import Ended, StoryRequest, write

__all__ = ["Difference", "Replayed", "fenced", "is_local", "replay_turn"]

_END = "(the end)"
_NOTHING = "(no token)"


@dataclass(frozen=True)
class Difference:
    """What is not as recorded.

    Attributes:
        position: index in the story of the token; None where it is not about one.
        recorded: what the file says.
        found: what it is.
    """

    position: int | None
    recorded: str
    found: str


@dataclass(frozen=True)
class Replayed:
    """What came of a turn.

    Attributes:
        turn: its number.
        tokens: how many were checked, the end among them where it was one.
        ties: numerical ties that went another way.
        difference: the first that is none; None where all is as recorded.
        unchecked: why it could not be; empty where it could.
    """

    turn: int
    tokens: int
    ties: int
    difference: Difference | None = None
    unchecked: str = ""


def is_local(name: str) -> bool:
    """Whether a model's name from a file may be opened: a shipped one; a folder has to be named by the user."""
    return name in SHIPPED_MODELS


class _Fenced:
    """A session that opens, for a stage, only models that are on this computer."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def open(self, model: str | None = None) -> Session:
        if model is not None and not is_local(model):
            raise UsageError(
                f"the decoder wants the model {model}, which does not ship with tinystory: "
                "a replay opens no other that a file names, and downloads nothing"
            )
        return fenced(self._session.open(model))


def fenced(session: Session) -> Session:
    """The same session, from which a recorded decoder cannot reach the network."""
    inside: Any = _Fenced(session)
    return inside  # type: ignore[no-any-return]


def replay_turn(tree: StoryTree, turn: Turn, model: LoadedModel, registry: Registry) -> Replayed:
    """Check the model's part of a turn.

    Args:
        tree: the node's.
        turn: with a written part.
        model: the one that wrote it, in the same dtype.
        registry: has the stages of its spec.

    Raises:
        UsageError: a stage is not here.
        TinystoryError: a stage failed, or the story is too long to look back at.
    """
    written = turn.written
    assert written is not None
    decoder = decoder_of(written, registry, model.tokenizer)
    stranger = next((name for name in decoder.models if not is_local(name)), None)
    if stranger is not None:
        return Replayed(turn.id, 0, 0, unchecked=f"its decoder opens {stranger}, which does not ship with tinystory")
    difference = _foreign(tree, turn, written, model)
    if difference is not None:
        return Replayed(turn.id, 0, 0, difference)
    result = (_chain if decoder.search is None else _search)(tree, turn, written, model, decoder)
    return replace(result, difference=result.difference or _text(tree, turn, model))


def _foreign(tree: StoryTree, turn: Turn, written: Written, model: LoadedModel) -> Difference | None:
    """The first token that cannot be one of the model's, or that ends a story and has more after it."""
    n_prompt = len(request_of(tree, turn.id, model.tokenizer).prompt_ids)
    for position, token_id in enumerate(written_ids(tree, turn.id, model.tokenizer)):
        if token_id >= model.tokenizer.vocab_size:
            return Difference(position, f"token id {token_id}", f"a vocabulary of {model.tokenizer.vocab_size}")
        if token_id in model.session.eos_ids and n_prompt <= position < n_prompt + len(written.tokens):
            return Difference(position, "an end of the story before its end", "none")
    return None


def _chain(tree: StoryTree, turn: Turn, written: Written, model: LoadedModel, decoder: Decoder) -> Replayed:
    """Pick each token again."""
    request = request_of(tree, turn.id, model.tokenizer, fenced(model.session).open)
    token_ids = written_ids(tree, turn.id, model.tokenizer)
    n_prompt, ties = len(request.prompt_ids), 0
    logits = story_logits(model.session, token_ids, request.window, n_prompt)
    for pick in retrace(decoder, request, token_ids, logits, eos_ids=model.session.eos_ids):
        if pick.tie:
            ties += 1
        elif pick.picked != pick.token_id:
            return Replayed(turn.id, pick.position - n_prompt, ties, _differing(pick, model))
    return Replayed(turn.id, len(token_ids) - n_prompt, ties, _length(written, len(token_ids)))


def _search(tree: StoryTree, turn: Turn, written: Written, model: LoadedModel, decoder: Decoder) -> Replayed:
    """Run the search again."""
    if written.finish_reason == "cancelled":
        return Replayed(turn.id, 0, 0, unchecked="a search that was cancelled")  # nobody knows at which moment
    asked = request_of(tree, turn.id, model.tokenizer)
    request = StoryRequest(
        model.tokenizer.detokenize(asked.prompt_ids),
        decoder,
        seed=written.seed,
        max_new_tokens=written.max_new_tokens,
        stop=written.stop,
        number=written.number,
        prompt_ids=asked.prompt_ids,
        n_prompt=asked.n_prompt,
    )
    [story] = [e.result for e in write(fenced(model.session), model.tokenizer, [request]) if isinstance(e, Ended)]
    recorded, found = tuple(token.id for token in written.tokens), story.token_ids
    n_same = common_prefix(recorded, found)
    position = len(asked.prompt_ids) + n_same
    if n_same < max(len(recorded), len(found)):
        texts = [_token_text(ids[n_same : n_same + 1], model) for ids in (recorded, found)]
        return Replayed(turn.id, n_same, 0, Difference(position, *texts))
    if story.finish_reason != written.finish_reason:
        return Replayed(turn.id, n_same, 0, Difference(position, written.finish_reason, story.finish_reason))
    return Replayed(turn.id, n_same, 0)


def _length(written: Written, position: int) -> Difference | None:
    """Whether a story ended where its limit says."""
    n_tokens, most = len(written.tokens), written.max_new_tokens
    reason = written.finish_reason
    if n_tokens > most or (reason == "length" and n_tokens < most) or (reason == "eos" and n_tokens >= most):
        return Difference(position, f"{n_tokens} tokens, ended by {reason}", f"a limit of {most}")
    return None


def _text(tree: StoryTree, turn: Turn, model: LoadedModel) -> Difference | None:
    """Whether the text shown is that of the tokens; a text before a stop may be cut within one."""
    if turn.tail_ids or model.tokenizer.detokenize(tree.token_ids(turn.id)) == tree.text(turn.id):
        return None
    return Difference(None, "a text", "that its tokens do not spell")


def _differing(pick: Pick, model: LoadedModel) -> Difference:
    eos_ids = model.session.eos_ids
    texts = [_END if one in eos_ids else _token_text([one] if one >= 0 else [], model, _NOTHING) for one in (
        pick.token_id, pick.picked,
    )]  # fmt: skip
    return Difference(pick.position, *texts)


def _token_text(token_ids: Sequence[int], model: LoadedModel, none: str = _END) -> str:
    """A token in quotes; what is said of none."""
    return repr(model.tokenizer.token_text(token_ids[0])) if token_ids else none
