"""Look for a watermark in a text: how many tokens are green, and how likely chance alone gives so many.

  tinystory generate "Once upon a time" -d "watermark delta=4 | sample" > story.txt
  python scripts/detect_watermark.py story.txt

Give the model, key and gamma that the text was written with. Read from its letters, a text may have other tokens than
it was written in; that costs a little evidence, no more.
"""

import argparse
import sys
from pathlib import Path

from tinystory.checkpoint.shipped import find_model
from tinystory.checkpoint.tokenizers import load_tokenizer
from tinystory.errors import TinystoryError, UsageError
from tinystory_decoders.watermark import Detection, Watermark, detect


def read_text(path: Path | None) -> str:
    """A file's text, or that of standard input.

    Raises:
        UsageError: it cannot be read, or there is nothing in it.
    """
    try:
        text = path.read_text(encoding="utf-8") if path else sys.stdin.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path or 'standard input'} cannot be read: {error}") from error
    if not text.strip():
        raise UsageError(f"{path or 'standard input'} is empty; give the text to look into")
    return text


def detect_in(text: str, model: str | None, options: Watermark) -> Detection:
    """Look into a text as tokens of a model.

    Raises:
        CheckpointError: the model is missing or invalid.
        UsageError: the text has fewer than two tokens.
    """
    header = find_model(model)[1]
    tokenizer = load_tokenizer(header)
    token_ids = tokenizer.encode(text)
    if token_ids[:1] == [tokenizer.bos_id]:
        del token_ids[0]  # nobody wrote it
    if len(token_ids) < 2:
        raise UsageError("the text is a single token; a watermark shows in pairs of tokens")
    # The lists are drawn from all the logits a model has, which may be more than its tokenizer has tokens.
    vocab_size = header.config.vocab_size if header.config else tokenizer.vocab_size
    return detect(token_ids, vocab_size, options.key, options.gamma)


def main() -> int:
    """Parse, detect, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="the text; else standard input")
    parser.add_argument("-m", "--model", metavar="MODEL", help="that wrote it: a folder, hub id or shipped model")
    parser.add_argument("--key", type=int, default=Watermark.key, metavar="N", help=f"(default {Watermark.key})")
    parser.add_argument(
        "--gamma", type=float, default=Watermark.gamma, metavar="X", help=f"(default {Watermark.gamma})"
    )
    args = parser.parse_args()
    try:
        options = Watermark(key=args.key, gamma=args.gamma)
        found = detect_in(read_text(args.file), args.model, options)
    except TinystoryError as error:
        print(f"detect_watermark: {error}", file=sys.stderr)
        return error.exit_code
    print(f"tokens scored  {found.n_scored}")
    print(f"green          {found.n_green} ({found.n_green / found.n_scored:.1%}; {args.gamma:.1%} by chance)")
    print(f"z              {found.z:.2f}")
    print(f"p              {found.p_value:.3g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
