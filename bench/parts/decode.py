"""The parts `decode` and `batch`: tokens per second of one story, and of several stories together.

No story ends by itself. The time includes the prefill of the prompt, and on our side also the text and the statistics.
"""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from bench.ours import labelled, open_ours, our_writer, prompt_of, variants_of
from bench.pairs import Measurement, rates, run_pairs, timed
from bench.peers import PEERS, SPECS, open_peer
from bench.subject import Subject
from bench.work import Work
from tinystory.errors import TinystoryError

if TYPE_CHECKING:
    from tinystory.decoding import Session

__all__ = ["check", "measure_batch", "measure_decode", "numerical_ties"]

ROWS = (2, 8, 32)
BATCH_AIMS = {8: 4.0}
"""The ratio to reach, beside one row, by the number of rows."""

BATCH_PEERS = ("transformers",)

TIE = 1e-3
"""Two logits whose difference is at most this may change places by rounding."""


def measure_decode(subject: Subject) -> list[Measurement]:
    """Measure one story: ours in every variant beside every peer."""
    measurements: list[Measurement] = []
    n_tokens, n_pairs = subject.settings.tokens, subject.settings.pairs
    with ExitStack() as stack:
        peers = {name: writer for name in PEERS if (writer := open_peer(name, subject, stack))}
        models = {name: open_ours(subject, name) for name in variants_of(subject)}
        for spec, drawn in SPECS.items():
            for variant, loaded in models.items():
                ours = our_writer(loaded, spec, n_tokens)
                work = Work(prompt_of(loaded), n_tokens, **drawn)
                for name, writer in peers.items():
                    peer = PEERS[name]
                    theirs = partial(writer, work)
                    check(subject, loaded.session, work, name, ours(), theirs(), peer.exact and variant == "float32")
                    measured = rates("decode", labelled(spec, variant), name, peer.aim)
                    run_pairs(f"{spec}, {name}", n_pairs, measured, partial(timed, ours), partial(timed, theirs))
                    measurements += measured
    return measurements


def measure_batch(subject: Subject) -> list[Measurement]:
    """Measure several stories together: beside one story of ours, and beside as many stories of a peer."""
    measurements: list[Measurement] = []
    n_tokens, n_pairs = subject.settings.tokens, subject.settings.pairs
    with ExitStack() as stack:
        peers = {name: writer for name in BATCH_PEERS if (writer := open_peer(name, subject, stack))}
        for variant in variants_of(subject):
            loaded = open_ours(subject, variant)
            for spec, drawn in SPECS.items():
                one_row = our_writer(loaded, spec, n_tokens)
                for n_rows in ROWS:
                    ours = our_writer(loaded, spec, n_tokens, n_rows)
                    work = Work(prompt_of(loaded), n_tokens, n_rows, **drawn)
                    others: dict[str, Callable[[], list[int]]] = {"one row": one_row}
                    others |= {name: partial(writer, work) for name, writer in peers.items()}
                    for name, theirs in others.items():
                        ours()
                        theirs()
                        aim = BATCH_AIMS.get(n_rows) if name == "one row" else None
                        measured = rates("batch", f"{labelled(spec, variant)}, {n_rows} rows", name, aim)
                        run_pairs(measured[0].what, n_pairs, measured, partial(timed, ours), partial(timed, theirs))
                        measurements += measured
    return measurements


def check(
    subject: Subject, session: "Session", work: Work, peer: str, ours: list[int], theirs: list[int], exact: bool
) -> None:
    """Check that both sides wrote the same number of tokens. Note whether their greedy stories are the same.

    Args:
        subject: gets the result among its checks.
        session: the session of our model.
        work: the work that both sides did.
        peer: the name of the other side.
        ours: our token ids.
        theirs: the token ids of the other side.
        exact: a greedy story may differ only at numerical ties.

    Raises:
        TinystoryError: the numbers of tokens differ, or the stories differ at a place that is no tie.
    """
    if {len(ours), len(theirs)} != {work.n_tokens}:
        raise TinystoryError(
            f"tinystory wrote {len(ours)} tokens and {peer} {len(theirs)}; both were asked for {work.n_tokens}"
        )
    if work.top_k > 1:
        return
    verdict: dict[str, int] = {"same": ours == theirs}
    if exact:
        verdict["numerical_ties"] = sum(
            numerical_ties(session, work.prompt_ids, list(ids)) for ids in {tuple(ours), tuple(theirs)}
        )
    subject.checks.setdefault("greedy", {})[peer] = verdict


def numerical_ties(session: "Session", prompt_ids: tuple[int, ...], greedy_ids: list[int]) -> int:
    """Count the tokens of a greedy story that are not the likeliest when our model computes the whole story at once.

    Raises:
        TinystoryError: such a token is more than `TIE` behind the likeliest one, so it is no numerical tie.
    """
    import torch

    fresh = session.open()
    first = fresh.prefill([prompt_ids])
    logits = torch.cat([first, fresh.decode(torch.tensor([greedy_ids[:-1]]))[0]]) if len(greedy_ids) > 1 else first
    behind = logits.max(dim=-1).values - logits.gather(1, torch.tensor(greedy_ids)[:, None])[:, 0]
    if behind.max() > TIE:
        at = int(behind.argmax())
        raise TinystoryError(f"greedy token {at} is not the likeliest: it is {behind[at]:.4f} nats behind")
    return int((behind > 0).sum())
