"""Replay: write a turn of a session again and compare it with the record. It knows no file and no terminal.

A chain picks each token again after the recorded tokens before it. So a numerical tie changes one token and not the
rest. A search does not pick token by token: it is run again, and every difference counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tinystory.checkpoint.shipped import SHIPPED_MODELS
from tinystory.decoding import Decoder, Session, common_prefix
from tinystory.decoding.loop import opener_of
from tinystory.decoding.plugins import Registry
from tinystory.errors import UsageError
from tinystory.session.loading import LoadedModel
from tinystory.story.lookback import decoder_of, request_of, written_ids
from tinystory.story.tracing import Pick, retrace, story_logits
from tinystory.story.tree import StoryTree, Turn, Written
from tinystory.writing.generate import Ended, StoryRequest, write

__all__ = ["Difference", "Replayed", "is_local", "replay_turn"]

_END = "(the end)"
_NOTHING = "(no token)"


@dataclass(frozen=True)
class Difference:
    """The first place where a turn differs from its record.

    Attributes:
        position: the index of the token in the story; None if the difference is not about one token.
        recorded: the token, or another fact, in the file.
        found: the same in the replay.
    """

    position: int | None
    recorded: str
    found: str


@dataclass(frozen=True)
class Replayed:
    """The result for one turn.

    Attributes:
        turn: the number of the turn.
        tokens: how many tokens were checked; the end of the story counts as one.
        ties: how many numerical ties went another way.
        difference: the first difference that is not a tie; None if the turn is as recorded.
        unchecked: why the turn could not be checked; empty if it was checked.
    """

    turn: int
    tokens: int
    ties: int
    difference: Difference | None = None
    unchecked: str = ""


def is_local(name: str) -> bool:
    """Return whether a model ships with tinystory. Only such a model may be opened because a file names it."""
    return name in SHIPPED_MODELS


class _ShippedOnly:
    """A session that opens no other models than the shipped ones.

    The loop guards `Request.open`, but not `open` of a session: a search has the session of the loop, and a stage has
    each session that it opened. Here the spec comes from a file, so these are guarded too.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def open(self, model: str | None = None) -> Session:
        if model is not None and not is_local(model):
            raise UsageError(
                f"the decoder opens the model {model}, which does not ship with tinystory: "
                "a replay opens no other model that a file names, and downloads nothing"
            )
        return _shipped_only(self._session.open(model))


def _shipped_only(session: Session) -> Session:
    guarded: Any = _ShippedOnly(session)
    return guarded  # type: ignore[no-any-return]


def replay_turn(tree: StoryTree, turn: Turn, model: LoadedModel, registry: Registry) -> Replayed:
    """Write the model's part of a turn again and compare.

    Args:
        tree: the tree of the turn.
        turn: a turn that a model has written.
        model: the model that wrote it, in the same dtype.
        registry: has the stages of its spec.

    Raises:
        UsageError: a stage is not installed.
        TinystoryError: a stage failed, or the story is too long to be computed again.
    """
    written = turn.written
    assert written is not None
    decoder = decoder_of(written, registry, model.tokenizer)
    unknown = next((name for name in decoder.models if not is_local(name)), None)
    if unknown is not None:
        return Replayed(turn.id, 0, 0, unchecked=f"its decoder opens {unknown}, which does not ship with tinystory")
    difference = _impossible_token(tree, turn, written, model)
    if difference is not None:
        return Replayed(turn.id, 0, 0, difference)
    replay = _replay_chain if decoder.search is None else _replay_search
    result = replay(tree, turn, written, model, decoder)
    return replace(result, difference=result.difference or _wrong_text(tree, turn, model))


def _impossible_token(tree: StoryTree, turn: Turn, written: Written, model: LoadedModel) -> Difference | None:
    """Return the first token that is not in the vocabulary, or that ends the story before its last token."""
    n_prompt = len(request_of(tree, turn.id, model.tokenizer).prompt_ids)
    for position, token_id in enumerate(written_ids(tree, turn.id, model.tokenizer)):
        if token_id >= model.tokenizer.vocab_size:
            return Difference(position, f"token id {token_id}", f"one of {model.tokenizer.vocab_size} tokens")
        if token_id in model.session.eos_ids and n_prompt <= position < n_prompt + len(written.tokens):
            return Difference(position, "an EOS token before the last token", "none")
    return None


def _replay_chain(tree: StoryTree, turn: Turn, written: Written, model: LoadedModel, decoder: Decoder) -> Replayed:
    """Pick each token again."""
    request = request_of(tree, turn.id, model.tokenizer, opener_of(_shipped_only(model.session), decoder))
    token_ids = written_ids(tree, turn.id, model.tokenizer)
    n_prompt, ties = len(request.prompt_ids), 0
    logits = story_logits(model.session, token_ids, request.window, n_prompt)
    for pick in retrace(decoder, request, token_ids, logits, eos_ids=model.session.eos_ids):
        if pick.tie:
            ties += 1
        elif pick.picked != pick.token_id:
            return Replayed(turn.id, pick.position - n_prompt, ties, _other_token(pick, model))
    return Replayed(turn.id, len(token_ids) - n_prompt, ties, _wrong_length(written, len(token_ids)))


def _replay_search(tree: StoryTree, turn: Turn, written: Written, model: LoadedModel, decoder: Decoder) -> Replayed:
    """Run the search again."""
    if written.finish_reason == "cancelled":  # the moment of the cancel is not recorded
        return Replayed(turn.id, 0, 0, unchecked="a search that was cancelled")
    request = request_of(tree, turn.id, model.tokenizer)
    story_request = StoryRequest(
        model.tokenizer.detokenize(request.prompt_ids),
        decoder,
        seed=written.seed,
        max_new_tokens=written.max_new_tokens,
        stop=written.stop,
        number=written.number,
        prompt_ids=request.prompt_ids,
        n_prompt=request.n_prompt,
    )
    events = write(_shipped_only(model.session), model.tokenizer, [story_request])
    [story] = [event.result for event in events if isinstance(event, Ended)]
    recorded_ids, found_ids = tuple(token.id for token in written.tokens), story.token_ids
    n_same = common_prefix(recorded_ids, found_ids)
    position = len(request.prompt_ids) + n_same
    if n_same < max(len(recorded_ids), len(found_ids)):
        texts = [_token_text(ids[n_same : n_same + 1], model) for ids in (recorded_ids, found_ids)]
        return Replayed(turn.id, n_same, 0, Difference(position, *texts))
    if story.finish_reason != written.finish_reason:
        return Replayed(turn.id, n_same, 0, Difference(position, written.finish_reason, story.finish_reason))
    return Replayed(turn.id, n_same, 0)


def _wrong_length(written: Written, position: int) -> Difference | None:
    """Return a difference if the finish reason does not fit the number of tokens."""
    n_tokens, limit = len(written.tokens), written.max_new_tokens
    reason = written.finish_reason
    if n_tokens > limit or (reason == "length" and n_tokens < limit) or (reason == "eos" and n_tokens >= limit):
        return Difference(position, f"{n_tokens} tokens, ended by {reason}", f"another number: max-tokens is {limit}")
    return None


def _wrong_text(tree: StoryTree, turn: Turn, model: LoadedModel) -> Difference | None:
    """Return a difference if the text of the turn is not the text of its tokens."""
    # A stop text may begin within a token; the rest before it is then spelled by other tokens.
    if turn.tail_ids or model.tokenizer.detokenize(tree.token_ids(turn.id)) == tree.text(turn.id):
        return None
    return Difference(None, "a text that its tokens do not spell", "the text of its tokens")


def _other_token(pick: Pick, model: LoadedModel) -> Difference:
    """Return the difference between the recorded token and the picked one."""

    def text(token_id: int) -> str:
        if token_id in model.session.eos_ids:
            return _END
        return _token_text([token_id] if token_id >= 0 else [], model, _NOTHING)

    return Difference(pick.position, text(pick.token_id), text(pick.picked))


def _token_text(token_ids: Sequence[int], model: LoadedModel, if_empty: str = _END) -> str:
    """Return the first token in quotes, or `if_empty` if there is no token."""
    return repr(model.tokenizer.token_text(token_ids[0])) if token_ids else if_empty
