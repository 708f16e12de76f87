"""How fast tinystory is: beside transformers and others on the same weights, beside limits, beside itself.

Every figure comes from interleaved pairs (ours, theirs, then theirs, ours), so that a machine busy with other things
slows both alike; ratios are taken within a pair, and above 1 tinystory is ahead. CPU time counts the work done, wall
time what a person waits. The parts:

    start     a whole process, from its start to the first byte of the story; the help
    memory    the peak of that process
    decode    tokens per second of one story, end of story disabled, so that all write the same number of tokens
    batch     the same with several rows at once, beside one row and beside transformers
    roofline  bytes a second that decoding reads, beside what a copy moves
    agree     greedy stories of every variant that are those of the plain model
    stages    microseconds of every processor and sampler
    search    tokens per second of a search, beside plain decoding
    studio    what commands of the studio cost, beside writing one story
    chat      what a chat takes to its prompt and to its first story, beside importing torch
    train     scored tokens per second of training, the model of -m and AdamW on both sides
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.history import append, plot, read
from bench.pairs import Measurement, Subject
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
from bench.variants import VARIANTS
from tinystory.checkpoint.shipped import find_model
from tinystory.errors import TinystoryError, UsageError

# Children first: one that is started by a large process may be counted with that size.
MEASURES: dict[tuple[str, ...], Callable[[Subject], list[Measurement]]] = {
    ("start", "memory"): measure_processes,
    ("decode",): measure_decode,
    ("batch",): measure_batch,
    ("roofline",): measure_roofline,
    ("agree",): measure_agreement,
    ("stages",): measure_stages,
    ("search",): measure_search,
    ("studio",): measure_studio,
    ("chat",): lambda subject: measure_chat(subject.directory, subject.args),
    ("train",): lambda subject: measure_training(subject.directory, subject.config, subject.args, subject.checks),
}
"""Parts, and what measures them together."""

PARTS = tuple(part for parts in MEASURES for part in parts)
SHIPPED = "default"


def main() -> int:
    """Measure, print a table, and turn mistakes into one line and an exit code."""
    args = parse_args()
    # Before NumPy or torch start their thread pools; the children inherit it.
    os.environ |= {name: str(args.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode, ours shall have it too
    try:
        return bench(args)
    except TinystoryError as error:
        print(f"bench: {error}", file=sys.stderr)
        return error.exit_code


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    model = parser.add_mutually_exclusive_group()
    model.add_argument("-m", "--model", metavar="DIR", help="a checkpoint of ours (default: the shipped model)")
    model.add_argument(
        "--model-shape",
        metavar="SHAPES",
        help=f"some of {','.join((SHIPPED, *SHAPES))}: the shipped model, or layers × width with random weights",
    )
    add("--pairs", type=int, default=7, metavar="N", help="pairs of each measurement (default 7)")
    add("--tokens", type=int, default=200, metavar="N", help="tokens of a decoded story (default 200)")
    add("--threads", type=int, default=1, metavar="N", help="threads of both sides (default 1)")
    add("--data", nargs="+", metavar="SOURCE", help="stories to train on (default: random tokens, as long as stories)")
    add("--rows", type=int, default=4, metavar="N", help="rows of a training step (default 4)")
    add("--steps", type=int, default=8, metavar="N", help="training steps that are timed (default 8)")
    add(
        "--variants",
        default=",".join(VARIANTS),
        metavar="NAMES",
        help=f"how ours computes: some of {','.join(VARIANTS)} (default all)",
    )
    add("--only", default=",".join(PARTS), metavar="PARTS", help=f"some of {','.join(PARTS)} (default all)")
    add("--json", type=Path, metavar="FILE", help="write all values there")
    add("--history", type=Path, metavar="FILE", help="add all values there, a line of JSON")
    add("--plot", type=Path, metavar="FILE", help="draw the ratios as .svg or .png, over time where --history has them")
    add("--markdown", action="store_true", help="print the table as Markdown")
    return parser.parse_args()


def bench(args: argparse.Namespace) -> int:
    """Run the parts asked for.

    Raises:
        UsageError: a part, a shape or a number is wrong, or the model is not ours.
        TinystoryError: a side failed, or the two did not do the same work.
    """
    parts = chosen("--only", args.only, PARTS)
    args.variants = ",".join(chosen("--variants", args.variants, tuple(VARIANTS)))
    for name in ("pairs", "tokens", "threads", "rows", "steps"):
        if getattr(args, name) < 1:
            raise UsageError(f"--{name} is {getattr(args, name)}; it must be at least 1")
    if args.plot and args.plot.suffix not in (".svg", ".png"):
        raise UsageError(f"--plot {args.plot}: the name must end in .svg or .png")
    found: list[Measurement] = []
    with subjects_of(args) as subjects:
        for measured, measure in MEASURES.items():
            for subject in subjects if set(measured) & set(parts) else ():
                new = [measurement for measurement in measure(subject) if measurement.part in parts]
                for measurement in new:
                    measurement.model = subject.name
                found += new
    found.sort(key=lambda measurement: PARTS.index(measurement.part))  # stable: start, then memory
    record = record_of(found, subjects, args)
    if args.json:
        args.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    if args.history and found:
        append(args.history, record)
    show(found, record, args.markdown)
    if args.plot:
        plot(read(args.history) if args.history else [record], args.plot)
    return 0


def chosen(flag: str, text: str, names: Sequence[str]) -> list[str]:
    """Names separated by commas; raises UsageError for one that is not there."""
    found = [name for name in text.split(",") if name]
    if unknown := [name for name in found if name not in names]:
        raise UsageError(f"{flag}: there is no {unknown[0]!r}; there are {', '.join(names)}")
    return found


@contextmanager
def subjects_of(args: argparse.Namespace) -> Iterator[list[Subject]]:
    """The models to measure; those with random weights are gone afterwards.

    Raises:
        UsageError: a shape is unknown, or the model is not ours.
        CheckpointError: the model is missing or invalid.
    """
    shapes = chosen("--model-shape", args.model_shape or SHIPPED, (SHIPPED, *SHAPES))
    with tempfile.TemporaryDirectory() as folder:
        subjects = []
        for shape in shapes:
            if shape in SHAPES:
                make_random(Path(folder) / shape, shape)
            name, header = find_model(str(Path(folder) / shape) if shape in SHAPES else args.model)
            if header.config is None:
                raise UsageError(
                    f"{header.directory} runs through transformers on both sides; give a checkpoint of ours"
                )
            subjects.append(Subject(Path(name).name, header.directory, header.config, args))
        yield subjects


def make_random(directory: Path, shape: str) -> None:
    """In a process of its own, so that this one stays small until its children are measured."""
    import multiprocessing

    from bench.shapes import save_random

    process = multiprocessing.get_context("spawn").Process(target=save_random, args=(directory, SHAPES[shape]))
    process.start()
    process.join()
    if process.exitcode:
        raise TinystoryError(f"the model {shape} could not be made")


if __name__ == "__main__":
    sys.exit(main())
