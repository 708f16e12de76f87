"""What a search costs: tokens per second of the story it gives, beside plain decoding of the same model."""

from functools import partial

from bench.pairs import Measurement, Subject, rates, run_pairs, timed
from bench.parts.decode import our_writer
from bench.variants import labelled, open_ours, variants_of
from tinystory.errors import TinystoryError

__all__ = ["measure_search"]

SEARCHES = {
    "beam 4": "greedy",
    "sample 0.8 | best-of 4": "sample 0.8",
    "greedy | speculative draft=mini": "greedy",
    "sample 0.8 | speculative draft=mini": "sample 0.8",
    "greedy | speculative draft=ngram": "greedy",
}
"""A search -> what writes a story without it; a row more is a line more."""


def measure_search(subject: Subject) -> list[Measurement]:
    """Those that are there, and can be had with this model."""
    found: list[Measurement] = []
    for variant in variants_of(subject):
        found += beside_plain(subject, variant)
    return found


def beside_plain(subject: Subject, variant: str) -> list[Measurement]:
    """The searches of one variant."""
    found: list[Measurement] = []
    loaded = open_ours(subject, variant)
    for spec, plain in SEARCHES.items():
        try:
            ours = our_writer(loaded, spec, subject.args.tokens)
            ours()
        except TinystoryError as error:
            subject.notes.append(f"{spec} is left out: {str(error).partition(':')[0]}")
            continue
        theirs = our_writer(loaded, plain, subject.args.tokens)
        theirs()
        measured = rates("search", labelled(spec, variant), plain)
        run_pairs(spec, subject.args.pairs, measured, partial(timed, ours), partial(timed, theirs))
        found += measured
    return found
