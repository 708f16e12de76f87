"""Commands that show figures: the surprise of the model at a story or at a file, and those of the latest turn."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tinystory.decoding.spec import shown_spec
from tinystory.errors import UsageError
from tinystory.repl.commands.base import Reply, command, path_of
from tinystory.safe.reading import regular_file_size
from tinystory.screen.blocks import Line, Table
from tinystory.studio.recall import n_bos_of, whole_story
from tinystory.studio.studio import Studio
from tinystory.writing.statistics import REASONS

if TYPE_CHECKING:
    from torch import Tensor

__all__: list[str] = []

_MAX_FILE_BYTES = 2_000_000


@command("ppl", "[FILE]", "show how surprised the model is by the story, or by the stories of a text file", "file")
def _ppl(studio: Studio, argument: str) -> Reply:
    """Compare models with the same vocabulary by perplexity, and all models by bits per byte.

    A file has at most 2 MB. In a .txt file, `<|endoftext|>` stands between stories. Ctrl-C stops.
    """
    if argument:
        return Reply((Table(tuple(_file_figures(studio, Path(path_of(argument, "/ppl"))))),))
    ids = whole_story(studio)
    start = max(1, n_bos_of(studio, ids))
    if len(ids) <= start:
        raise UsageError("the page is blank; write something first, or give a FILE")
    studio.backend.wait(lambda: False)
    bits = _bits(studio.backend.logits(ids, start), ids[start:])
    rows = [("tokens", f"{len(bits):,}"), *_figures(sum(bits) / len(bits))]
    spelled = not studio.backend.tokenizer.n_unknown([ids[start:]])
    rows.append(("bits per byte", _per_byte(sum(bits) / max(1, len(studio.text.encode())) if spelled else None)))
    path = studio.tree.path(studio.tree.current)
    written = [cost for cost, token in zip(bits, path[start:], strict=False) if token.token is not None]
    if len(path) == len(studio.token_ids) and 0 < len(written) < len(bits):
        bits_per_token = sum(written) / len(written)
        rows.append(("written by the model", f"{bits_per_token:.3f} bits per token, of {len(written):,}"))
    return Reply((Table(tuple(rows)),))


@command("stats", "", "show the figures of the latest turn")
def _stats(studio: Studio, argument: str) -> Reply:
    last = studio.results.get(studio.tree.current)
    if last is None:
        return Reply((Line("the model has written nothing here since the chat began", "dim"),))
    figures = last.statistics
    rows = [
        ("decoder", shown_spec(last.request.decoder)),
        ("seed", str(last.request.seed)),
        ("ended by", REASONS[last.finish_reason]),
        ("tokens", f"{len(last.tokens)} after {len(last.prompt_ids)}"),
        ("time", f"{figures['seconds']:.2f} s, the first token after {figures['first_token_seconds']:.3f} s"),
        ("speed", f"{figures['tokens_per_second']:.1f} tokens/s"),
        ("surprise", f"{figures['bits_per_token']:.3f} bits/token, perplexity {2 ** figures['bits_per_token']:.2f}"),
    ]
    rows += [(name.replace("_", " "), f"{value:g}") for name, value in figures.items() if name not in _SHOWN_FIGURES]
    return Reply((Table(tuple(rows)),))


def _bits(logits: "Tensor", token_ids: tuple[int, ...]) -> list[float]:
    """Return the model's surprise at each token, in bits, from (T, V) logits."""
    rows = logits.log_softmax(dim=-1)
    return [-float(row[token_id]) / math.log(2) for row, token_id in zip(rows, token_ids, strict=True)]


def _figures(bits_per_token: float) -> tuple[tuple[str, str], ...]:
    perplexity = 2**bits_per_token if bits_per_token < 1000 else math.inf
    return (("perplexity", f"{perplexity:,.2f}"), ("bits per token", f"{bits_per_token:.3f}"))


def _per_byte(bits: float | None) -> str:
    return "– (the vocabulary cannot spell the text)" if bits is None else f"{bits:.3f}"


def _file_figures(studio: Studio, path: Path) -> Iterator[tuple[str, str]]:
    """Yield the figures of the stories in a file. Ctrl-C stops the model between two batches."""
    size = regular_file_size(path)
    if size > _MAX_FILE_BYTES:
        raise UsageError(f"{path} has {size:,} bytes; /ppl takes at most 2 MB, `tinystory eval` takes any file")
    studio.backend.wait(lambda: False)
    from tinystory.data.sources import read_stories

    evaluation = studio.backend.evaluate(read_stories([path]))
    yield "stories", f"{evaluation.stories:,}"
    yield "tokens", f"{evaluation.tokens:,}, the ends included"
    yield from _figures(evaluation.nats_per_token / math.log(2))
    yield "bits per byte", _per_byte(evaluation.bits_per_byte)
    yield "likeliest token right", f"{evaluation.accuracy:.1%}"


_SHOWN_FIGURES = {"tokens", "seconds", "first_token_seconds", "tokens_per_second", "bits_per_token"}
