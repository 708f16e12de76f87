"""Train a byte-level BPE vocabulary on stories and write it as a `tokenizer.json`."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tinystory.commands.shared.dashes import with_joined_separator
from tinystory.data.sources import SourceReport, read_stories
from tinystory.errors import TinystoryError, UsageError
from tinystory.safe.writing import write_atomically
from tinystory.text.tokenizer import END_OF_TEXT

FEWEST, MOST = 257, 2**24
"""The smallest vocabulary has 256 bytes and `<|endoftext|>`; the library reserves memory for the largest one."""


def train(stories: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train byte-level BPE (Sennrich et al. 2016) with the pre-tokenizer of GPT-2. Only a few stories are in memory.

    The token `<|endoftext|>` has the id 0 and is both BOS and EOS.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=sys.stderr.isatty(),
    )
    tokenizer.train_from_iterator(stories, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, 0)]
    )
    return tokenizer


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, train, and write the vocabulary; return the exit code."""
    args = parse_args(argv)
    try:
        run(args)
    except TinystoryError as error:
        print(f"train_tokenizer: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"train_tokenizer: {args.out} cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"train_tokenizer: interrupted; {args.out} is as it was before", file=sys.stderr)
        return 130
    return 0


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add(
        "--data",
        nargs="+",
        required=True,
        metavar="SOURCE",
        help="stories: .txt, .jsonl or .parquet files, a folder saved by datasets, or a hub name",
    )
    add("--column", metavar="NAME", help="column that has the text (default text, else story)")
    add("--split", default="train", help="split of a hub dataset (default train)")
    add("--separator", metavar="TEXT", help="text between the stories of a text file (default <|endoftext|>)")
    add("--vocab-size", type=int, default=2048, metavar="V", help="number of tokens (default 2048)")
    add("--out", type=Path, required=True, metavar="FILE", help="the tokenizer.json to write")
    args = parser.parse_args(with_joined_separator(sys.argv[1:] if argv is None else argv))
    if not FEWEST <= args.vocab_size <= MOST:
        parser.error(f"--vocab-size must be from {FEWEST} (256 bytes and <|endoftext|>) to {MOST:,}")
    return args


def run(args: argparse.Namespace) -> None:
    """Train and write the vocabulary.

    Raises:
        TinystoryError: the stories cannot be read, or the place of the vocabulary is wrong.
        OSError: the vocabulary cannot be written.
    """
    if args.out.is_dir():
        raise UsageError(f"{args.out} is a folder; name the file to write, such as {args.out / 'tokenizer.json'}")
    args.out.parent.mkdir(parents=True, exist_ok=True)  # a place that cannot be written shows before the training
    report = SourceReport()
    stories = read_stories(
        args.data, args.split, column=args.column, separator=args.separator, report=report
    )  # fmt: skip
    tokenizer = train(stories, args.vocab_size)
    write_atomically(args.out, tokenizer.to_str(pretty=True).encode())
    print(f"{args.out}: {tokenizer.get_vocab_size()} tokens from {report}")
    for note in report.notes:
        print(f"  {note}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
