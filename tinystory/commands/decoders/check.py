"""`tinystory decoders check FILE`: report whether a decoder keeps the contract, and what it costs."""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tinystory.commands.decoders import DecodersOptions
from tinystory.commands.shared.notices import warn
from tinystory.decoding import Decoder, Stage
from tinystory.decoding.options import is_neutral
from tinystory.decoding.plugins import Registry, discover, source_text
from tinystory.decoding.spec import example_decoder, format_spec, parse_spec
from tinystory.errors import CheckpointError, UsageError
from tinystory.safe.showing import visible

__all__ = ["run"]

_VOCAB_SIZE = 2048
_STYLES = {"ok": "green", "failed": "bold red", "not run": "dim"}


@dataclass(frozen=True)
class _Subject:
    """A stage to check, and the whole decoder of its example."""

    stage: Stage
    decoder: Decoder


def run(options: DecodersOptions) -> int:
    """Check every decoder of a file, an installed decoder, or a spec. Return 1 if a check fails, else 0.

    Raises:
        UsageError: there is nothing to check, or it is no decoder.
    """
    text = options.subject
    if not text:
        raise UsageError("say what to check: a file, the name of a decoder, or a spec")
    is_file = text.endswith(".py") or os.path.isfile(text)
    registry = discover((*options.decoder_file, Path(text)) if is_file else options.decoder_file)
    subjects = list(_of_file(text, registry) if is_file else _of_spec(text, registry))
    warn(options, registry.warnings)
    reports = [_report(subject) for subject in subjects]
    if options.json:
        sys.stdout.write(json.dumps(reports, ensure_ascii=False) + "\n")
    else:
        _print(reports)
    return 0 if all(report["passed"] for report in reports) else 1


def _of_file(text: str, registry: Registry) -> Iterator[_Subject]:
    source = source_text(Path(text))
    return (_example(cls, registry) for _, cls, place in registry.classes() if place == source)


def _of_spec(text: str, registry: Registry) -> Iterator[_Subject]:
    if text in registry.names() or text in registry.aliases:
        yield _example(registry.get(text), registry)
    else:
        decoder = parse_spec(text, registry)
        yield _Subject(decoder.search or decoder.stages[0], decoder)


def _example(cls: type[Stage], registry: Registry) -> _Subject:
    decoder = example_decoder(cls, registry)
    return _Subject(next(stage for stage in decoder.stages if isinstance(stage, cls)), decoder)


def _report(subject: _Subject) -> dict[str, Any]:
    """Return the results of the checks and the cost of the stage, as plain data."""
    from tinystory.testing import examine
    from tinystory.testing.cost import measure

    checks = examine(subject.decoder)
    passed = all(check.outcome != "failed" for check in checks)
    neutral = is_neutral(subject.stage)
    cost = measure(subject.stage, subject.decoder, _VOCAB_SIZE) if passed and not neutral else None
    step = _decode_step() if cost else None
    return {
        "name": subject.stage.name,
        "kind": subject.stage.kind,
        "spec": format_spec(subject.decoder),
        "passed": passed,
        "neutral": neutral,
        "checks": [asdict(check) for check in checks],
        "vocab_size": _VOCAB_SIZE,
        "microseconds_per_token": cost and cost.microseconds,
        "model_tokens_per_token": cost and cost.model_tokens,
        "decode_step_microseconds": step,
    }


def _decode_step() -> float | None:
    """Return the microseconds that the shipped model takes for a token, or None if it is not installed."""
    from tinystory.session.loading import load
    from tinystory.testing.cost import decode_microseconds

    try:
        return decode_microseconds(load().session)
    except CheckpointError:
        return None


def _print(reports: list[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from tinystory.screen.console import table_console

    console = table_console()
    for report in reports:
        table = Table(box=None, pad_edge=False, show_header=False)
        for check in report["checks"]:
            outcome = check["outcome"]
            table.add_row(Text(outcome, style=_STYLES[outcome]), check["name"], visible(check["detail"]))
        console.print(f"{report['name']} ({report['kind']}), checked as `{visible(report['spec'])}`")
        console.print(table)
        console.print(f"{_summary(report)}\n")


def _summary(report: dict[str, Any]) -> str:
    """Return the last lines of a report."""
    n_failed = sum(check["outcome"] == "failed" for check in report["checks"])
    if n_failed:
        return f"{n_failed} failed; the checks after a failure may not have run"
    if report["neutral"]:
        return "it stands at its neutral value and was never called: set `example` to a value that changes something"
    cost, step = report["microseconds_per_token"], report["decode_step_microseconds"]
    lines = [f"passed; {cost:.0f} microseconds a token on this CPU at V={report['vocab_size']}"]
    if step:
        lines.append(f"that is {100 * cost / step:.1f} % of the shipped model's {step:.0f} microseconds")
    if report["kind"] == "search":
        lines.append(f"the model computes {report['model_tokens_per_token']:.1f} tokens for each token of the story")
    return "\n".join(lines)
