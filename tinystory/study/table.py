"""Make the table of a study from its findings, for the terminal and for the page. Knows no layout."""

from collections.abc import Mapping
from typing import Any

from tinystory.decoding import Decoder
from tinystory.decoding.spec import shown_spec

__all__ = ["as_shown", "cells", "heading_of", "headings"]

_COLUMNS = (  # heading, name of a measure, unit
    ("bits gap", "bits_gap", "bits"),
    ("bits/token", "bits_per_token", "bits"),
    ("distinct-2", "distinct_2", "ratio"),
    ("self-BLEU", "self_bleu", "ratio"),
    ("repeated 4-grams", "repeated_4grams", "share"),
    ("ended properly", "ended_properly", "share"),
    ("unknown words", "unknown_words", "share"),
    ("impossible", "impossible", "share"),
    ("words", "words", "count"),
)
_MISSING = "–"


def as_shown(findings: Mapping[str, Any], decoders: Mapping[str, Decoder]) -> dict[str, Any]:
    """Return the findings with specs as people see them, for table, page and plots.

    Args:
        findings: the findings, with canonical specs.
        decoders: the decoders of the study by their canonical specs.
    """
    shown = {spec: shown_spec(decoder) for spec, decoder in decoders.items()}
    return {
        **findings,
        "decoders": [row | {"spec": shown[row["spec"]]} for row in findings["decoders"]],
        "winner": findings["winner"] and shown[findings["winner"]],
        "tied": [shown[spec] for spec in findings["tied"]],
        "failed": {shown[spec]: reason for spec, reason in findings["failed"].items()},
    }


def heading_of(name: str) -> str:
    """Return the heading of the column that has a measure."""
    return next(heading for heading, column, _ in _COLUMNS if column == name)


def headings(findings: Mapping[str, Any]) -> list[str]:
    """Return the headings of all columns: place and spec come first, speed comes last."""
    return ["", "decoder", "distance", *(heading for heading, _, _ in _shown(findings)), "tokens/CPU s"]


def cells(findings: Mapping[str, Any], *, intervals: bool = False) -> list[list[str]]:
    """Return a row for the real stories and one for each decoder, the nearest to real stories first.

    Args:
        findings: the result of `findings`.
        intervals: write the interval of each figure under it, after a `<br>`.
    """
    columns = _shown(findings)
    real = findings["real"]["measures"]
    rows = [["", "real stories", _MISSING, *(_cell(real.get(name), unit, intervals) for _, name, unit in columns), ""]]
    for place, row in enumerate(findings["decoders"], start=1):
        figures = [_cell(row["measures"].get(name), unit, intervals) for _, name, unit in columns]
        speed = f"{row['tokens_per_cpu_second']:,.0f}"
        mark = "=" if row["spec"] in findings["tied"] else ""
        rows.append([f"{place}{mark}", row["spec"], _cell(row["distance"], "ratio", intervals), *figures, speed])
    return rows


def _shown(findings: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the columns that have at least one figure."""
    rows = [findings["real"], *findings["decoders"]]
    return [column for column in _COLUMNS if any(column[1] in row["measures"] for row in rows)]


def _cell(figure: Mapping[str, float | None] | None, unit: str, intervals: bool) -> str:
    if figure is None or figure["value"] is None:
        return _MISSING
    shown = _number(figure["value"], unit)
    if not intervals or figure["low"] is None or figure["high"] is None:
        return shown
    return f"{shown}<br>{_number(figure['low'], unit)} … {_number(figure['high'], unit)}"


def _number(value: float, unit: str) -> str:
    if unit == "share":
        return f"{value:.2%}"
    return f"{value:,.0f}" if unit == "count" else f"{value:.2f}" if unit == "bits" else f"{value:.3f}"
