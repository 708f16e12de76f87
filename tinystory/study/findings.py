"""Compute the findings of a study from the records of its journal, as `study.json` has them. Knows no page."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from tinystory.study.bootstrap import Estimate, Floats, Measure, Ratio, estimate, resamples
from tinystory.study.collection import Plan
from tinystory.study.criterion import CRITERION, distances, rank, real_side
from tinystory.study.excerpts import Excerpt
from tinystory.study.measures import (
    BUCKET_TOKENS,
    Profile,
    StoryGroup,
    comparable_ngrams,
    measured,
    profile_of,
    reference_of,
)

__all__ = ["findings"]

StudyRecord = Mapping[str, Any]


def findings(
    plan: Plan,
    real: Sequence[Sequence[Excerpt]],
    records: Sequence[StudyRecord],
    *,
    vocabulary: Collection[str] | None = None,
    failed: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the figures of all decoders and of the real stories.

    Args:
        plan: the plan of the study; all its work is done.
        real: groups of real excerpts.
        records: the records of the journal; those that are not in the plan are ignored.
        vocabulary: the words of the training text, if it is known.
        failed: decoders that could not write their stories, with the reasons; they are only named.

    Returns:
        The content of `study.json`: figures as `{"value", "low", "high"}`, shares from 0 to 1, surprise in bits.
    """
    failed = failed or {}
    sides = {spec: _written(plan, spec, records) for spec in plan.decoders if spec not in failed}
    real_groups = _real(real, records)
    ngrams = comparable_ngrams(list(sides.values()), real_groups)
    weights = resamples(len(plan.prompts))
    real_profile = profile_of(real_groups, plan.max_tokens)

    def measures_of(
        groups: Sequence[StoryGroup], profile: Profile, reference: tuple[Floats, Floats]
    ) -> dict[str, Measure]:
        return dict(measured(groups, profile, reference, distinct_ngrams=ngrams, vocabulary=vocabulary))

    real_measures = measures_of(real_groups, real_profile, reference_of(real_profile, leave_one_out=True))
    real_figures = real_side(real_measures, len(plan.prompts))
    reference = reference_of(real_profile)
    profiles = {spec: profile_of(groups, plan.max_tokens) for spec, groups in sides.items()}
    measures = {spec: measures_of(groups, profiles[spec], reference) for spec, groups in sides.items()}
    ones = np.ones((1, len(plan.prompts)))
    plain_distances = {spec: float(distances(figures, real_figures, ones)[0]) for spec, figures in measures.items()}
    resampled = {spec: distances(figures, real_figures, weights) for spec, figures in measures.items()}
    order, tied = rank(plain_distances, resampled)
    rows = [
        {
            "spec": spec,
            "seeds": list(plan.seeds_of(spec)),
            "distance": _distance(plain_distances[spec], resampled[spec]),
            "measures": _estimates(measures[spec] | _impossible(spec, len(plan.prompts), records), weights),
            "profile": profiles[spec].mean(),
            **_speed(plan, spec, records),
        }
        for spec in order
    ]
    return {
        "winner": order[0] if order and np.isfinite(plain_distances[order[0]]) else None,
        "tied": tied,
        "criterion": {name: asdict(side) for name, side in real_figures.items()},
        "left_out_of_criterion": [name for name in CRITERION if name not in real_figures],
        "prompts": len(plan.prompts),
        "seeds": list(plan.seeds),
        "max_tokens": plan.max_tokens,
        "bucket_tokens": BUCKET_TOKENS,
        "distinct_ngrams": ngrams,
        "real": {
            "groups": len(real_groups),
            "measures": _estimates(real_measures, weights),
            "profile": real_profile.mean(),
        },
        "decoders": rows,
        "failed": dict(failed),
    }


def _written(plan: Plan, spec: str, records: Sequence[StudyRecord]) -> list[StoryGroup]:
    """Return the stories of a decoder: one group for each seed."""
    groups = []
    for seed in plan.seeds_of(spec):
        by_number = {
            record["first"] + index: story
            for record in records
            if record["kind"] == "stories" and (record["spec"], record["seed"]) == (spec, seed)
            for index, story in enumerate(record["stories"])
        }
        stories = [by_number[number] for number in range(len(plan.prompts))]
        groups.append(
            StoryGroup(
                tuple(story["completion"] for story in stories),
                tuple(story["bits"] for story in stories),
                tuple(story["finish_reason"] == "eos" for story in stories),
            )
        )
    return groups


def _real(real: Sequence[Sequence[Excerpt]], records: Sequence[StudyRecord]) -> list[StoryGroup]:
    bits = {record["group"]: record["bits"] for record in records if record["kind"] == "real"}
    return [
        StoryGroup(
            tuple(excerpt.text for excerpt in group),
            tuple(bits[number]),
            tuple(excerpt.finished for excerpt in group),
        )
        for number, group in enumerate(real)
    ]


def _estimates(measures: Mapping[str, Measure], weights: Floats) -> dict[str, dict[str, float | None]]:
    return {name: asdict(estimate(measure, weights)) for name, measure in measures.items()}


def _impossible(spec: str, n_stories: int, records: Sequence[StudyRecord]) -> dict[str, Measure]:
    """Return the share of real tokens that a decoder makes impossible; empty if it is not known for all stories."""
    counts: dict[int, tuple[int, int] | None] = {}
    for record in records:
        if record["kind"] == "coverage" and spec in record["impossible"]:
            counts[record["story"]] = record["impossible"][spec]
    complete = [count for number in range(n_stories) if (count := counts.get(number))]
    if len(complete) < n_stories:
        return {}
    table = np.array(complete, np.float64)
    return {"impossible": Ratio(table[None, :, 0], table[None, :, 1])}


def _distance(value: float, resampled: Floats) -> dict[str, float | None]:
    finite = resampled[np.isfinite(resampled)]
    if not np.isfinite(value) or not len(finite):
        return asdict(Estimate(None, None, None))
    low, high = np.quantile(finite, (0.025, 0.975))
    return asdict(Estimate(value, float(low), float(high)))


def _speed(plan: Plan, spec: str, records: Sequence[StudyRecord]) -> dict[str, float | int]:
    spec_records = [
        record
        for record in records
        if record["kind"] == "stories" and record["spec"] == spec and record["seed"] in plan.seeds_of(spec)
    ]
    tokens = sum(len(story["bits"]) for record in spec_records for story in record["stories"])
    seconds = sum(record["cpu_seconds"] for record in spec_records)
    return {
        "tokens": tokens,
        "cpu_seconds": round(seconds, 3),
        "tokens_per_cpu_second": round(tokens / seconds, 1) if seconds else 0.0,
    }
