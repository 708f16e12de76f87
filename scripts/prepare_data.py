"""Tokenise stories once, into a folder that the trainer reads through the memory map.

OUT/train holds the training stories, OUT/valid those of --valid or of the test split. What is there and made of the
same is reused.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from tinystory.checkpoint.tokenizers import find_tokenizer
from tinystory.data.prepare import prepare
from tinystory.data.selection import Selection
from tinystory.data.shards import TokenShards
from tinystory.data.sources import SourceReport
from tinystory.errors import TinystoryError, UsageError

console = Console(stderr=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, prepare, print, and turn mistakes into one line and an exit code."""
    args = parse_args(argv)
    try:
        run(args)
    except TinystoryError as error:
        print(f"prepare_data: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("prepare_data: interrupted; what was there before is untouched", file=sys.stderr)
        return 130
    return 0


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--data",
        nargs="+",
        required=True,
        metavar="SOURCE",
        help="training stories: .txt, .jsonl or .parquet files, a glob of such, a saved datasets folder, or the name "
        "of a hub dataset (roneneldan/TinyStories downloads 2 GB)",
    )
    add(
        "--tokenizer", required=True, metavar="NAME", help="a tokenizer.json, a folder with one, default, or a hub name"
    )
    add("--out", type=Path, required=True, metavar="DIR", help="where the prepared stories go")
    add("--valid", nargs="+", metavar="SOURCE", help="validation stories; all of them are used")
    add("--fraction", type=float, default=1.0, metavar="F", help="share of the training stories to use (default 1)")
    add("--test-split", type=float, default=0.0, metavar="F", help="share of those held out for validation (default 0)")
    add("--seed", type=int, default=0, metavar="N", help="of fraction and split (default 0)")
    add("--split", default="train", help="split of a hub dataset (default train; validation for --valid)")
    add("--column", metavar="NAME", help="column of the text (default text, else story)")
    add("--streaming", action="store_true", help="do not keep a hub dataset on the disk")
    add("--rebuild", action="store_true", help="tokenise again even where nothing changed")
    add("--verify", action="store_true", help="check the files' SHA-256 at the end")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Prepare one or both parts."""
    if args.valid and args.test_split:
        raise UsageError("give either --valid or --test-split")
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
                streaming=args.streaming,
                selection=selection,
                rebuild=args.rebuild,
                progress=progress,
            )
        if args.verify:
            shards.verify()
        describe(name, shards)


def describe(name: str, shards: TokenShards) -> None:
    """Print what a part holds, and what was wrong with its sources."""
    how = "reused" if shards.reused else "written"
    print(f"{shards.directory} {how}: {shards.n_tokens:,} tokens, {shards.n_bytes / shards.n_tokens:.2f} bytes each")
    print(f"  {name}: {shards.report}")


@contextmanager
def progress_bar(name: str) -> Iterator[Callable[[SourceReport], None]]:
    """A bar with the stories so far and per second; nothing where there is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), _Stories(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=None)
        yield lambda report: bar.update(task, completed=report.stories)


class _Stories(ProgressColumn):
    def render(self, task: Task) -> Text:
        """How far, how fast."""
        return Text(f"{task.completed:,.0f} stories, {task.speed or 0:,.0f}/s")


if __name__ == "__main__":
    sys.exit(main())
