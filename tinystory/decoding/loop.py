"""The one loop behind every command: jobs in, decoder events out, chains together in a batch."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tinystory.decoding.stages import (
    Chain,
    ChainState,
    Commit,
    Decoder,
    Event,
    Finish,
    FinishReason,
    Request,
    Search,
    Session,
    Step,
    Token,
    Window,
    named,
)
from tinystory.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["opener_of", "run", "shrunk"]


@dataclass(slots=True)
class _Row:
    """A chain story in flight: `token_ids` is the whole story, `context` the part the model still sees."""

    job: int
    request: Request
    chain: Chain
    state: ChainState
    token_ids: list[int]
    context: list[int]

    def shrink(self, max_seq_len: int) -> None:
        """Drop old text, so that the rest fits into the model's context."""
        self.context = shrunk(self.token_ids, self.request.window, max_seq_len)

    @property
    def n_new(self) -> int:
        return len(self.token_ids) - len(self.request.prompt_ids)


def run(session: Session, jobs: Sequence[tuple[Decoder, Request]]) -> Iterator[tuple[int, Event]]:
    """Write stories: the one loop behind every command.

    Jobs whose decoder is a chain step together in one batch, finished ones leaving it; then each search runs
    alone. Closing the iterator early is safe.

    Args:
        session: its rows are replaced.
        jobs: pairs of decoder and request.

    Yields:
        (index into jobs, event); exactly one Finish for each job, as its last event.

    Raises:
        TinystoryError: a stage failed, or needs what the session cannot do.
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
            raise UsageError(f"a stage opens the model {model}, which its `models()` does not name")
        return session.open(model)

    return open_session


def shrunk(token_ids: Sequence[int], window: Window, max_seq_len: int) -> list[int]:
    """The context that a story goes on with when it has outgrown the model: 1 to max_seq_len ids, the latest last."""
    return (list(window(token_ids, max_seq_len)) or list(token_ids[-1:]))[-max_seq_len:]


def _run_search(session: Session, decoder: Decoder, search: Search, request: Request) -> Iterator[Event]:
    for verb in ("rewind", "reorder"):
        if getattr(search, f"needs_{verb}") and not getattr(session, f"can_{verb}"):
            raise UsageError(f"{search.name} has to {verb} the model's cache, and this model cannot")
    reason = _over(request)
    if reason:
        yield Finish(reason)
        return
    with named(search):
        yield from search.search(session, request, decoder.chain)


def _over(request: Request) -> FinishReason | None:
    """Whether a story ends before it has begun, and why."""
    return request.interrupted() or ("length" if request.max_new_tokens == 0 else None)


def _run_chains(session: Session, jobs: Sequence[tuple[int, Decoder, Request]]) -> Iterator[tuple[int, Event]]:
    rows = []
    for job, decoder, request in jobs:
        reason = _over(request)
        if reason:
            yield job, Finish(reason)
            continue
        chain, ids = decoder.chain, list(request.prompt_ids)
        rows.append(_Row(job, request, chain, chain.start(request), ids, list(ids)))
    for row in rows:
        if len(row.context) > session.max_seq_len:
            row.shrink(session.max_seq_len)
    if not rows:
        return
    logits = session.prefill([row.context for row in rows])
    while True:
        going = []
        for index, row in enumerate(rows):
            token, reason = _pick(row, logits[index], session.eos_ids)
            if token:
                yield row.job, Commit((token,))
                reason = row.request.interrupted() or ("length" if row.n_new >= row.request.max_new_tokens else None)
            if reason:
                yield row.job, Finish(reason, row.chain.statistics(row.state))
            else:
                going.append(index)
        if not going:
            return
        if len(going) < len(rows):
            rows = [rows[index] for index in going]
            session.reorder(going)
        if any(len(row.context) > session.max_seq_len for row in rows):
            for row in rows:
                if len(row.context) > session.max_seq_len:
                    row.shrink(session.max_seq_len)
            logits = session.prefill([row.context for row in rows])
        else:
            logits = session.decode([row.context[-1] for row in rows])


def _pick(row: _Row, logits: "Tensor", eos_ids: frozenset[int]) -> tuple[Token | None, FinishReason | None]:
    """Move a row on by one token, or say that the story has ended."""
    step = Step(row.request, row.token_ids, eos_ids)
    token_id, row.state = row.chain.pick(logits, step, row.state)
    if token_id in eos_ids:
        return None, "eos"
    row.token_ids.append(token_id)
    row.context.append(token_id)
    return Token.of(logits, token_id), None
