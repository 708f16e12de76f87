"""Train a byte-level BPE vocabulary on stories and write it as a `tokenizer.json`."""

import argparse
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tinystory.data.sources import read_stories
from tinystory.errors import TinystoryError
from tinystory.text.tokenizer import END_OF_TEXT


def train(stories: list[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE (Sennrich et al. 2016) with GPT-2's pre-tokenizer; `<|endoftext|>` is id 0, BOS and EOS."""
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
    """Parse, train, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="stories: a .txt file, a saved datasets folder or a hub name")
    parser.add_argument("--vocab-size", type=int, default=2048, metavar="V", help="tokens in all (default 2048)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="where the tokenizer.json goes")
    args = parser.parse_args()
    if args.vocab_size < 257:
        parser.error("--vocab-size must be at least 257: 256 bytes and <|endoftext|>")
    try:
        tokenizer = train(list(read_stories(args.data)), args.vocab_size)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(args.out))
    except TinystoryError as error:
        print(f"train_tokenizer: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{args.out}: {tokenizer.get_vocab_size()} tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())
