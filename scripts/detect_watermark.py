"""Look for a watermark in a text: count its green tokens, and give the probability of this count by chance alone.

  tinystory generate "Once upon a time" -d "watermark delta=4 | sample" > story.txt
  python scripts/detect_watermark.py story.txt

Give the model, key and gamma with which the text was written. The text is tokenised again. A few of its tokens may then
differ from those that were written, which makes the evidence a little weaker.
"""

import argparse
import sys
from pathlib import Path

from tinystory.checkpoint.shipped import find_model
from tinystory.checkpoint.tokenizers import load_tokenizer
from tinystory.errors import TinystoryError, UsageError
from tinystory_decoders.watermark import Detection, Watermark, detect


def read_text(path: Path | None) -> str:
    """Return the text of a file, or of standard input.

    Raises:
        UsageError: the text cannot be read, or is empty.
    """
    try:
        text = path.read_text(encoding="utf-8") if path else sys.stdin.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path or 'standard input'} cannot be read: {error}") from error
    if not text.strip():
        raise UsageError(f"{path or 'standard input'} is empty; give the text to search")
    return text


def detect_in(text: str, model: str | None, options: Watermark) -> Detection:
    """Look for a watermark in a text, as tokens of a model.

    Raises:
        CheckpointError: the model is missing or invalid.
        UsageError: the text has fewer than two tokens.
    """
    header = find_model(model)[1]
    tokenizer = load_tokenizer(header)
    token_ids = tokenizer.encode(text, bos=False)
    if len(token_ids) < 2:
        raise UsageError("the text is a single token; a watermark shows only in pairs of tokens")
    # A model may have more logits than its tokenizer has tokens; the green lists are drawn from all logits.
    vocab_size = header.config.vocab_size if header.config else tokenizer.vocab_size
    return detect(token_ids, vocab_size, options.key, options.gamma)


def main() -> int:
    """Parse the command line, look for the watermark, and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="the text; without FILE, standard input")
    parser.add_argument(
        "-m", "--model", metavar="MODEL", help="the model of the text: a folder, a hub id or a shipped model"
    )
    parser.add_argument("--key", type=int, default=Watermark.key, metavar="N", help=f"key (default {Watermark.key})")
    parser.add_argument(
        "--gamma",
        type=float,
        default=Watermark.gamma,
        metavar="X",
        help=f"green share (default {Watermark.gamma})",
    )
    args = parser.parse_args()
    try:
        options = Watermark(key=args.key, gamma=args.gamma)
        result = detect_in(read_text(args.file), args.model, options)
    except TinystoryError as error:
        print(f"detect_watermark: {error}", file=sys.stderr)
        return error.exit_code
    print(f"tokens scored  {result.n_scored}")
    print(f"green          {result.n_green} ({result.n_green / result.n_scored:.1%}; {args.gamma:.1%} by chance)")
    print(f"z              {result.z:.2f}")
    print(f"p              {result.p_value:.3g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
