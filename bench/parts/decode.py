"""Tokens per second: one story beside the peers, and several together beside one; no story ends by itself.

A rate counts the prompt's pass, and on our side the text and the statistics of every token.
"""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from bench.pairs import Measurement, Subject, rates, run_pairs, timed
from bench.peers import PEERS, SEED, SPECS, open_peer
from bench.variants import PROMPT, labelled, open_ours, prompt_of, variants_of
from bench.work import Work
from tinystory.errors import TinystoryError

if TYPE_CHECKING:
    from tinystory.decoding import Session
    from tinystory.session.loading import LoadedModel

__all__ = ["measure_batch", "measure_decode", "our_writer"]

ROWS = (2, 8, 32)
BATCH_AIMS = {8: 4.0}
"""Rows -> the tokens per CPU second beside those of one row."""

BATCH_PEERS = ("transformers",)

TIE = 1e-3
"""Two logits nearer than this may change places by rounding."""


def measure_decode(subject: Subject) -> list[Measurement]:
    """One story: ours in every variant beside every peer."""
    found: list[Measurement] = []
    with ExitStack() as stack:
        peers = {name: writer for name in PEERS if (writer := open_peer(name, subject, stack))}
        models = {name: open_ours(subject, name) for name in variants_of(subject)}
        for spec, drawn in SPECS.items():
            for variant, loaded in models.items():
                ours = our_writer(loaded, spec, subject.args.tokens)
                work = Work(prompt_of(loaded), subject.args.tokens, **drawn)
                for name, writer in peers.items():
                    peer = PEERS[name]
                    theirs = partial(writer, work)
                    check(subject, loaded.session, work, name, ours(), theirs(), peer.exact and variant == "float32")
                    measured = rates("decode", labelled(spec, variant), name, peer.aim)
                    run_pairs(
                        f"{spec}, {name}", subject.args.pairs, measured, partial(timed, ours), partial(timed, theirs)
                    )
                    found += measured
    return found


def measure_batch(subject: Subject) -> list[Measurement]:
    """Several stories together beside one of ours, and beside as many of a peer's."""
    found: list[Measurement] = []
    n_tokens, n_pairs = subject.args.tokens, subject.args.pairs
    with ExitStack() as stack:
        peers = {name: writer for name in BATCH_PEERS if (writer := open_peer(name, subject, stack))}
        for variant in variants_of(subject):
            loaded = open_ours(subject, variant)
            for spec, drawn in SPECS.items():
                one = our_writer(loaded, spec, n_tokens)
                for n_rows in ROWS:
                    ours = our_writer(loaded, spec, n_tokens, n_rows)
                    work = Work(prompt_of(loaded), n_tokens, n_rows, **drawn)
                    others: dict[str, Callable[[], list[int]]] = {"one row": one}
                    others |= {name: partial(writer, work) for name, writer in peers.items()}
                    for name, theirs in others.items():
                        ours()
                        theirs()
                        aim = BATCH_AIMS.get(n_rows) if name == "one row" else None
                        measured = rates("batch", f"{labelled(spec, variant)}, {n_rows} rows", name, aim)
                        run_pairs(measured[0].what, n_pairs, measured, partial(timed, ours), partial(timed, theirs))
                        found += measured
    return found


def our_writer(loaded: "LoadedModel", spec: str, n_tokens: int, n_rows: int = 1) -> Callable[[], list[int]]:
    """A function that writes stories from an empty cache, all at once, and gives their ids one after the other."""
    from tinystory.decoding.plugins import discover
    from tinystory.decoding.spec import parse_spec
    from tinystory.writing.generate import Ended, StoryRequest, write

    decoder = parse_spec(spec, discover())
    requests = [
        StoryRequest(PROMPT, decoder, seed=SEED, max_new_tokens=n_tokens, number=number) for number in range(n_rows)
    ]

    def run() -> list[int]:
        events = write(loaded.session.open(), loaded.tokenizer, requests)
        return [i for event in events if isinstance(event, Ended) for i in event.result.token_ids]

    return run


def check(
    subject: Subject, session: "Session", work: Work, peer: str, ours: list[int], theirs: list[int], exact: bool
) -> None:
    """See that both sides wrote as much, and note whether the greedy stories are the same; `exact`: they have to be.

    Raises:
        TinystoryError: they did not.
    """
    if {len(ours), len(theirs)} != {work.n_tokens}:
        raise TinystoryError(f"{work.n_tokens} tokens asked, {len(ours)} and {len(theirs)} written by ours and {peer}")
    if work.top_k > 1:
        return
    verdict: dict[str, int] = {"same": ours == theirs}
    if exact:
        verdict["numerical_ties"] = sum(
            numerical_ties(session, work.prompt_ids, list(ids)) for ids in {tuple(ours), tuple(theirs)}
        )
    subject.checks.setdefault("greedy", {})[peer] = verdict


def numerical_ties(session: "Session", prompt_ids: tuple[int, ...], greedy_ids: list[int]) -> int:
    """How often, along a greedy story, the likeliest token of our whole-story pass is another by rounding alone.

    Raises:
        TinystoryError: it is another one and the two were no tie.
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
