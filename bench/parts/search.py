"""The part `search`: tokens per second of the story that a search gives, beside plain decoding."""

from functools import partial

from bench.ours import labelled, open_ours, our_writer, variants_of
from bench.pairs import Measurement, rates, run_pairs, timed
from bench.subject import Subject
from tinystory.errors import TinystoryError

__all__ = ["measure_search"]

SEARCHES = {
    "beam 4": "greedy",
    "sample 0.8 | best-of 4": "sample 0.8",
    "greedy | speculative draft=mini": "greedy",
    "sample 0.8 | speculative draft=mini": "sample 0.8",
    "greedy | speculative draft=ngram": "greedy",
}
"""Specs with a search, each with the spec that it is compared with."""


def measure_search(subject: Subject) -> list[Measurement]:
    """Measure every search that runs with this model, in every variant."""
    return [measurement for variant in variants_of(subject) for measurement in _beside_plain(subject, variant)]


def _beside_plain(subject: Subject, variant: str) -> list[Measurement]:
    measurements: list[Measurement] = []
    loaded, settings = open_ours(subject, variant), subject.settings
    for spec, plain in SEARCHES.items():
        try:
            ours = our_writer(loaded, spec, settings.tokens)
            ours()
        except TinystoryError as error:
            subject.leave_out(spec, str(error).partition(":")[0])
            continue
        theirs = our_writer(loaded, plain, settings.tokens)
        theirs()
        measured = rates("search", labelled(spec, variant), plain)
        run_pairs(spec, settings.pairs, measured, partial(timed, ours), partial(timed, theirs))
        measurements += measured
    return measurements
