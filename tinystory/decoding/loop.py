"""The one loop behind every command: decoders and requests in, events out. Chains run together in one batch."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tinystory.decoding.events import Commit, Event, Finish, FinishReason, Token
from tinystory.decoding.request import Request, Session, Step, Window
from tinystory.decoding.stages import Chain, ChainState, Decoder, Search, named
from tinystory.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["opener_of", "run", "shrunk"]


@dataclass(slots=True)
class _Row:
    """A story that a chain is writing. `token_ids` is the whole story, `context` is what the model still sees."""

    job: int
    request: Request
    chain: Chain
    state: ChainState
    token_ids: list[int]
    context: list[int]

    def fit(self, max_seq_len: int) -> bool:
        """Cut old text if the context is longer than the model's. Return True if something was cut."""
        if len(self.context) <= max_seq_len:
            return False
        self.context = shrunk(self.token_ids, self.request.window, max_seq_len)
        return True

    @property
    def n_new(self) -> int:
        return len(self.token_ids) - len(self.request.prompt_ids)


def run(session: Session, jobs: Sequence[tuple[Decoder, Request]]) -> Iterator[tuple[int, Event]]:
    """Write stories.

    First, all jobs without a search are written together in one batch. A story that has ended leaves the batch. Then
    each search runs alone. It is safe to close the iterator early.

    Args:
        session: the model. Its rows are replaced.
        jobs: pairs of decoder and request.

    Yields:
        Pairs of an index into jobs and an event. The last event of each job is its only Finish.

    Raises:
        TinystoryError: a stage failed, or needs something that the session cannot do.
    """
    jobs = [(decoder, replace(request, opener=opener_of(session, decoder))) for decoder, request in jobs]
    chains = [index for index, (decoder, _) in enumerate(jobs) if decoder.search is None]
    batches = [chains] if session.can_reorder else [[index] for index in chains]
    for batch in filter(None, batches):
        yield from _run_chains(session, [(index, *jobs[index]) for index in batch])
    for index, (decoder, request) in enumerate(jobs):
        if decoder.search is not None:
            yield from ((index, event) for event in _run_search(session, decoder, decoder.search, request))


def opener_of(session: Session, decoder: Decoder) -> Callable[[str | None], Session]:
    """Return a function that opens only the models that `decoder.models` names.

    So the spec alone decides which models a decoder may open, and a spec from a file can be checked beforehand.
    """

    def open_session(model: str | None) -> Session:
        if model is not None and model not in decoder.models:
            raise UsageError(f"a stage opens the model {model}, but its `models()` does not name it")
        return session.open(model)

    return open_session


def shrunk(token_ids: Sequence[int], window: Window, max_seq_len: int) -> list[int]:
    """Return the context for a story that is longer than the model's context.

    Returns:
        1 to max_seq_len ids, the latest last.
    """
    return (list(window(token_ids, max_seq_len)) or list(token_ids[-1:]))[-max_seq_len:]


def _run_search(session: Session, decoder: Decoder, search: Search, request: Request) -> Iterator[Event]:
    for verb in ("rewind", "reorder"):
        if getattr(search, f"needs_{verb}") and not getattr(session, f"can_{verb}"):
            raise UsageError(f"{search.name} has to {verb} the model's cache, and this model cannot do that")
    reason = request.reason_to_end(0)
    if reason:
        yield Finish(reason)
        return
    with named(search):
        yield from search.search(session, request, decoder.chain)


def _run_chains(session: Session, jobs: Sequence[tuple[int, Decoder, Request]]) -> Iterator[tuple[int, Event]]:
    rows = []
    for job, decoder, request in jobs:
        reason = request.reason_to_end(0)
        if reason:
            yield job, Finish(reason)
            continue
        chain, ids = decoder.chain, list(request.prompt_ids)
        rows.append(_Row(job, request, chain, chain.start(request), ids, list(ids)))
    if not rows:
        return
    for row in rows:
        row.fit(session.max_seq_len)
    logits = session.prefill([row.context for row in rows])
    while True:
        unfinished = []
        for index, row in enumerate(rows):
            token, reason = _pick(row, logits[index], session.eos_ids)
            if token:
                yield row.job, Commit((token,))
                reason = row.request.reason_to_end(row.n_new)
            if reason:
                yield row.job, Finish(reason, row.chain.statistics(row.state))
            else:
                unfinished.append(index)
        if not unfinished:
            return
        if len(unfinished) < len(rows):
            rows = [rows[index] for index in unfinished]
            session.reorder(unfinished)
        logits = _next_logits(session, rows)


def _next_logits(session: Session, rows: Sequence[_Row]) -> "Tensor":
    """Return (B, V) logits after the last token of each row. If a row was cut, all contexts are read again."""
    was_cut = [row.fit(session.max_seq_len) for row in rows]
    if any(was_cut):
        return session.prefill([row.context for row in rows])
    return session.decode([row.context[-1] for row in rows])


def _pick(row: _Row, logits: "Tensor", eos_ids: frozenset[int]) -> tuple[Token | None, FinishReason | None]:
    """Add a token to a row and return it, or return the reason "eos"."""
    step = Step(row.request, row.token_ids, eos_ids)
    token_id, row.state = row.chain.pick(logits, step, row.state)
    if token_id in eos_ids:
        return None, "eos"
    row.token_ids.append(token_id)
    row.context.append(token_id)
    return Token.of(logits, token_id), None
