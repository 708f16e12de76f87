"""Read the specs and the prompts of a study, or give the built-in specs. Knows specs and files, and no model."""

from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path

from tinystory.data.prompts import PromptFile
from tinystory.decoding import Decoder
from tinystory.decoding.plugins import Registry
from tinystory.decoding.spec import format_spec, parse_spec
from tinystory.errors import UsageError
from tinystory.safe.reading import read_text, shown
from tinystory.safe.showing import visible

__all__ = ["BUILT_IN_GRID", "FEWEST", "decoders_of", "read_grid", "read_prompts"]

_MOST_GRID_BYTES = 2**20

FEWEST = 2
"""The fewest prompts of a study: variety is measured between the stories of different prompts."""

BUILT_IN_GRID = (
    "greedy",
    "sample",
    "sample 0.8",
    "sample 0.6",
    "top-k 40 | sample",
    "top-k 40 | sample 0.8",
    "top-p 0.95 | sample",
    "top-p 0.9 | sample",
    "min-p 0.1 | sample",
    "min-p 0.05 | sample",
    "typical 0.95 | sample",
    "epsilon 0.001 | sample",
    "eta 0.001 | sample",
    "top-h 0.4 | sample",
    "top-n-sigma 1 | sample",
    "top-a 0.2 | sample",
    "min-p 0.05 | xtc | sample",
    "dynamic-temperature low=0.5 high=1.2 | sample",
    "repetition-penalty 1.1 | sample 0.8",
    "no-repeat 4 | sample 0.8",
    "dry | sample 0.8",
    "mirostat",
    "expert-amateur mini | sample",
    "no-repeat 3 | greedy",
    "beam 4",
    "no-repeat 3 | beam 4",
    "diverse-beam",
    "contrastive",
    "sample 0.8 | best-of 4",
)
"""Every built-in method once or twice, with values that its authors or others suggest; none was tuned here."""


def read_grid(path: Path) -> list[str]:
    """Return the specs of a file, one from each line; empty lines and lines that begin with # are left out.

    Raises:
        UsageError: the file cannot be read, or has no spec.
    """
    text = read_text(path, _MOST_GRID_BYTES, raises=UsageError)
    specs = [spec for line in text.splitlines() if (spec := line.strip()) and not spec.startswith("#")]
    if not specs:
        raise UsageError(f"{visible(str(path))} has no decoder spec; write one on each line")
    return specs


def decoders_of(
    specs: Iterable[str], registry: Registry, *, skip_unknown: bool = False
) -> tuple[dict[str, Decoder], dict[str, str]]:
    """Return the decoders of some specs.

    Args:
        specs: specs as users write them.
        registry: the stages that are installed.
        skip_unknown: leave out specs that have a stage which is not installed.

    Returns:
        The decoders by canonical spec, each once, in order; and the specs that were left out, each with the reason.

    Raises:
        UsageError: a spec is wrong, or none is left.
    """
    installed = {*registry.names(), *registry.aliases}
    decoders: dict[str, Decoder] = {}
    skipped: dict[str, str] = {}
    for spec in specs:
        try:
            decoder = parse_spec(spec, registry)
        except UsageError as error:
            missing = [name for name in _names(spec) if name not in installed]
            if not (skip_unknown and missing):
                raise UsageError(f"{shown(spec)}: {error}") from error
            skipped[spec] = f"{missing[0]} is not installed"
        else:
            decoders.setdefault(format_spec(decoder), decoder)
    if not decoders:
        raise UsageError(f"no decoder is left to study: {_listed(skipped)}")
    return decoders, skipped


def _names(spec: str) -> list[str]:
    return [words[0] for stage in spec.split("|") if (words := stage.split())]


def _listed(skipped: Mapping[str, str]) -> str:
    return "; ".join(dict.fromkeys(skipped.values())) or "give one with -d"


def read_prompts(path: Path, limit: int | None = None) -> tuple[str, ...]:
    """Return the prompts of a file.

    Args:
        path: a file as for `PromptFile`.
        limit: take only the first `limit` prompts.

    Raises:
        UsageError: the file cannot be read, has another format, or has fewer than `FEWEST` prompts.
    """
    with PromptFile(path) as file:
        prompts = tuple(islice(file, limit))
    if len(prompts) < FEWEST:
        raise UsageError(f"{file.name} has {len(prompts)} prompts; a study needs at least {FEWEST}")
    return prompts
