"""Tokenise stories once for many training runs, into a folder that `scripts/train.py --data` reads.

OUT/train gets the training stories, and OUT/valid the stories of --valid or of the test split. A folder that was made
from the same stories, tokenizer and choice is reused.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from tinystory.checkpoint.tokenizers import find_tokenizer
from tinystory.commands.shared.dashes import with_joined_separator
from tinystory.data.prepare import prepare
from tinystory.data.selection import Selection
from tinystory.data.shards import TokenShards
from tinystory.data.sources import SourceReport
from tinystory.errors import TinystoryError, UsageError
from tinystory.screen.console import console as make_console

console = make_console(stderr=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, prepare the stories, and print mistakes in a line; return the exit code."""
    args = parse_args(argv)
    try:
        run(args)
    except TinystoryError as error:
        print(f"prepare_data: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("prepare_data: interrupted; the files that were there before are untouched", file=sys.stderr)
        return 130
    return 0


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--data",
        nargs="+",
        required=True,
        metavar="SOURCE",
        help="training stories: .txt, .jsonl or .parquet files, a glob of such files, a folder saved by datasets, or "
        "the name of a hub dataset (roneneldan/TinyStories downloads 2 GB)",
    )
    add(
        "--tokenizer",
        required=True,
        metavar="NAME",
        help="a tokenizer.json, a folder that has one, a hub name, or default for that of the shipped model",
    )
    add("--out", type=Path, required=True, metavar="DIR", help="the folder to write")
    add("--valid", nargs="+", metavar="SOURCE", help="validation stories; all of them are used")
    add("--fraction", type=float, default=1.0, metavar="F", help="share of the training stories to use (default 1)")
    add(
        "--test-split",
        type=float,
        default=0.0,
        metavar="F",
        help="share of these that is held out for validation (default 0)",
    )
    add(
        "--split-seed", "--seed", dest="seed", type=int, default=0, metavar="N", help="seed of both choices (default 0)"
    )
    add("--split", default="train", help="split of a hub dataset (default train; validation for --valid)")
    add("--column", metavar="NAME", help="column that has the text (default text, else story)")
    add(
        "--separator",
        metavar="TEXT",
        help=r"text between the stories of a text file (default <|endoftext|>, or what a file plainly has instead); "
        r"'\n\n' is a blank line, '\n' takes each line as a story",
    )
    add("--streaming", action="store_true", help="read a hub dataset without keeping it on the disk")
    add("--rebuild", action="store_true", help="tokenise again, even if nothing has changed")
    add("--verify", action="store_true", help="check the SHA-256 of the files at the end")
    return parser.parse_args(with_joined_separator(sys.argv[1:] if argv is None else argv))


def run(args: argparse.Namespace) -> None:
    """Prepare the training stories, and the validation stories if there are any."""
    if args.valid and args.test_split:
        raise UsageError("give either --valid or --test-split, not both")
    tokenizer = find_tokenizer(args.tokenizer)
    chosen = {"fraction": args.fraction, "test_split": args.test_split, "seed": args.seed}
    parts = {"train": (args.data, args.split, Selection(**chosen))}
    if args.valid:
        parts["valid"] = (args.valid, "validation", Selection())
    elif args.test_split:
        parts["valid"] = (args.data, args.split, Selection(**chosen, part="test"))
    for name, (sources, split, selection) in parts.items():
        with progress_bar(name) as progress:
            shards = prepare(
                sources,
                tokenizer,
                args.out / name,
                split=split,
                column=args.column,
                separator=args.separator,
                streaming=args.streaming,
                selection=selection,
                rebuild=args.rebuild,
                progress=progress,
            )
        if args.verify:
            shards.verify()
        describe(name, shards)


def describe(name: str, shards: TokenShards) -> None:
    """Print how many stories a part has, and the faults of its sources."""
    how = "reused" if shards.reused else "written"
    print(f"{shards.directory} {how}: {shards.n_tokens:,} tokens, {shards.n_bytes / shards.n_tokens:.2f} bytes each")
    print(f"  {name}: {shards.report}")
    for note in shards.report.notes:
        print(f"  {note}", file=sys.stderr)


@contextmanager
def progress_bar(name: str) -> Iterator[Callable[[SourceReport], None]]:
    """Show a bar with the stories so far and per second, if standard error is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), _Stories(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=None)
        yield lambda report: bar.update(task, completed=report.stories)


class _Stories(ProgressColumn):
    """The number of stories so far, and the speed in stories/s."""

    def render(self, task: Task) -> Text:
        """Return the text of the column."""
        return Text(f"{task.completed:,.0f} stories, {task.speed or 0:,.0f}/s")


if __name__ == "__main__":
    sys.exit(main())
