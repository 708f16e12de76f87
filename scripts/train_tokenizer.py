"""Train a byte-level BPE vocabulary on stories and write it as a `tokenizer.json`."""

import argparse
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tinystory.data.sources import read_stories
from tinystory.errors import TinystoryError
from tinystory.safe.writing import write_atomically
from tinystory.text.tokenizer import END_OF_TEXT


def train(stories: list[str], vocab_size: int) -> Tokenizer:
    """Train byte-level BPE (Sennrich et al. 2016) with the pre-tokenizer of GPT-2.

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


def main() -> int:
    """Parse the command line, train, and write the vocabulary; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data",
        required=True,
        help="stories: a .txt, .jsonl or .parquet file, a folder saved by datasets, or a hub name",
    )
    parser.add_argument("--vocab-size", type=int, default=2048, metavar="V", help="number of tokens (default 2048)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the tokenizer.json to write")
    args = parser.parse_args()
    if args.vocab_size < 257:
        parser.error("--vocab-size must be at least 257: 256 bytes and <|endoftext|>")
    try:
        tokenizer = train(list(read_stories(args.data)), args.vocab_size)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(args.out, tokenizer.to_str(pretty=True).encode())
    except TinystoryError as error:
        print(f"train_tokenizer: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"train_tokenizer: {args.out} cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    print(f"{args.out}: {tokenizer.get_vocab_size()} tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())
