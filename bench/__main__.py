"""Measure the speed of tinystory, beside other programs with the same weights, beside limits, and beside itself.

Every figure comes from interleaved pairs (ours, theirs, then theirs, ours), so that other work of the machine slows
both sides alike. A ratio is taken within a pair; above 1, tinystory is ahead. CPU time measures the work; wall time is
the time that a person waits. The parts:

    start     a whole process, from its start to the first byte of the story; the help
    memory    the largest memory of that process
    decode    tokens per second of one story; no story ends early, so that all have the same number of tokens
    batch     the same with several rows at once, compared with one row and with transformers
    roofline  bytes per second that decoding reads, compared with the bytes that a copy moves
    agree     greedy stories of every variant that are equal to those of the plain model
    stages    microseconds of every processor and sampler
    search    tokens per second of a search, compared with plain decoding
    studio    the time of slash commands, compared with writing one story
    chat      the time of a chat to its input line and to its first token, compared with importing torch
    train     scored tokens per second of training, with the shape of the model of -m and AdamW on both sides
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.history import append, plot, read
from bench.ours import VARIANTS
from bench.pairs import Measurement
from bench.parts.agree import measure_agreement
from bench.parts.chat import measure_chat
from bench.parts.decode import measure_batch, measure_decode
from bench.parts.roofline import measure_roofline
from bench.parts.search import measure_search
from bench.parts.stages import measure_stages
from bench.parts.startup import measure_processes
from bench.parts.studio import measure_studio
from bench.parts.train import measure_training
from bench.report import record_of, show
from bench.shapes import SHAPES
from bench.subject import Settings, Subject
from tinystory.checkpoint.shipped import find_model
from tinystory.errors import TinystoryError, UsageError

# Processes first: a child of a large process may be counted with the size of its parent.
MEASURES: dict[tuple[str, ...], Callable[[Subject], list[Measurement]]] = {
    ("start", "memory"): measure_processes,
    ("decode",): measure_decode,
    ("batch",): measure_batch,
    ("roofline",): measure_roofline,
    ("agree",): measure_agreement,
    ("stages",): measure_stages,
    ("search",): measure_search,
    ("studio",): measure_studio,
    ("chat",): measure_chat,
    ("train",): measure_training,
}
"""Functions by the parts that they measure."""

PARTS = tuple(part for parts in MEASURES for part in parts)
SHIPPED = "default"


@dataclass(frozen=True, kw_only=True)
class BenchOptions(Settings):
    """The options of `python -m bench`.

    Attributes:
        parts: the parts to measure.
        model: a folder, a hub id or the name of a shipped model.
        shapes: names of `SHAPES`; `SHIPPED` stands for `model`.
        json: a file for the record of the run.
        history: a file of records, to which the run is added.
        plot: a file for a picture of the ratios.
        markdown: print the tables as Markdown.
    """

    parts: tuple[str, ...]
    model: str | None
    shapes: tuple[str, ...]
    json: Path | None
    history: Path | None
    plot: Path | None
    markdown: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print tables. Return the exit code; a mistake is one line on standard error."""
    args = parse_args(argv)
    # This comes before NumPy or torch start their threads; child processes inherit it.
    os.environ |= {name: str(args.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # installed packages have bytecode, so ours gets it too
    try:
        return bench(options_of(args))
    except TinystoryError as error:
        print(f"bench: {error}", file=sys.stderr)
        return error.exit_code


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    model = parser.add_mutually_exclusive_group()
    model.add_argument("-m", "--model", metavar="DIR", help="a checkpoint of tinystory (default: the shipped model)")
    model.add_argument(
        "--model-shape",
        default=SHIPPED,
        metavar="SHAPES",
        help=f"some of {','.join((SHIPPED, *SHAPES))}: the shipped model, or layers × width with random weights",
    )
    add("--pairs", type=int, default=7, metavar="N", help="pairs of each measurement (default 7)")
    add("--tokens", type=int, default=200, metavar="N", help="tokens of a story (default 200)")
    add("--threads", type=int, default=1, metavar="N", help="threads of both sides (default 1)")
    add("--data", nargs="+", metavar="SOURCE", help="stories to train on (default: random tokens, as long as stories)")
    add("--rows", type=int, default=4, metavar="N", help="rows of a training step (default 4)")
    add("--steps", type=int, default=8, metavar="N", help="training steps that are timed (default 8)")
    add(
        "--variants",
        default=",".join(VARIANTS),
        metavar="NAMES",
        help=f"how tinystory computes: some of {','.join(VARIANTS)} (default all)",
    )
    add("--only", default=",".join(PARTS), metavar="PARTS", help=f"some of {','.join(PARTS)} (default all)")
    add("--json", type=Path, metavar="FILE", help="write all values to FILE")
    add("--history", type=Path, metavar="FILE", help="add all values to FILE, as a line of JSON")
    add("--plot", type=Path, metavar="FILE", help="draw the ratios as .svg or .png; with --history over time")
    add("--markdown", action="store_true", help="print the tables as Markdown")
    return parser.parse_args(argv)


def options_of(args: argparse.Namespace) -> BenchOptions:
    """Check the values of the command line.

    Raises:
        UsageError: a part, a variant, a shape, a number or the name of the picture is wrong.
    """
    numbers = {name: getattr(args, name) for name in ("pairs", "tokens", "threads", "rows", "steps")}
    for name, number in numbers.items():
        if number < 1:
            raise UsageError(f"--{name} is {number}; it must be at least 1")
    if args.plot and args.plot.suffix not in (".svg", ".png"):
        raise UsageError(f"--plot {args.plot}: the name must end in .svg or .png")
    return BenchOptions(
        **numbers,
        variants=chosen("--variants", args.variants, tuple(VARIANTS)),
        data=tuple(args.data or ()),
        parts=chosen("--only", args.only, PARTS),
        model=args.model,
        shapes=chosen("--model-shape", args.model_shape, (SHIPPED, *SHAPES)),
        json=args.json,
        history=args.history,
        plot=args.plot,
        markdown=args.markdown,
    )


def chosen(flag: str, text: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of a text with commas between them.

    Raises:
        UsageError: a name is not among `names`.
    """
    words = tuple(word for word in text.split(",") if word)
    if unknown := [word for word in words if word not in names]:
        raise UsageError(f"{flag}: there is no {unknown[0]!r}; there are {', '.join(names)}")
    return words


def bench(options: BenchOptions) -> int:
    """Measure the parts that the options name, and write and show the results.

    Raises:
        UsageError: the model runs only through transformers, or a story does not fit into its context.
        TinystoryError: a side failed, or both sides did not do the same work.
    """
    measurements: list[Measurement] = []
    with subjects_of(options) as subjects:
        for parts, measure in MEASURES.items():
            for subject in subjects if set(parts) & set(options.parts) else ():
                measured = [measurement for measurement in measure(subject) if measurement.part in options.parts]
                for measurement in measured:
                    measurement.model = subject.name
                measurements += measured
    measurements.sort(key=lambda measurement: PARTS.index(measurement.part))  # stable: start, then memory
    record = record_of(measurements, subjects, options)
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    if options.history and measurements:
        append(options.history, record)
    show(measurements, record, options.markdown)
    if options.plot:
        plot(read(options.history) if options.history else [record], options.plot)
    return 0


@contextmanager
def subjects_of(options: BenchOptions) -> Iterator[list[Subject]]:
    """Yield the models to measure. Models with random weights are deleted afterwards.

    Raises:
        UsageError: the model runs only through transformers.
        CheckpointError: the model is missing or invalid.
    """
    with tempfile.TemporaryDirectory() as folder:
        subjects = []
        for shape in options.shapes:
            if shape in SHAPES:
                make_random(Path(folder) / shape, shape)
            name, header = find_model(str(Path(folder) / shape) if shape in SHAPES else options.model)
            if header.config is None:
                raise UsageError(
                    f"{header.directory} runs through transformers on both sides; give a Llama or GPT-2 model"
                )
            subjects.append(Subject(Path(name).name, header.directory, header.config, options))
        yield subjects


def make_random(directory: Path, shape: str) -> None:
    """Make a model in another process, so that this process stays small until its children are measured."""
    import multiprocessing

    from bench.shapes import save_random

    process = multiprocessing.get_context("spawn").Process(target=save_random, args=(directory, SHAPES[shape]))
    process.start()
    process.join()
    if process.exitcode:
        raise TinystoryError(f"the model {shape} could not be made")


if __name__ == "__main__":
    sys.exit(main())
