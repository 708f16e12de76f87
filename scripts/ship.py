"""Make a checkpoint of a run ready to publish: bfloat16 weights, no training state, and a model card.

python scripts/ship.py --checkpoint runs/mine/best --card card.md --out tinystory/models/mine
"""

import argparse
import sys
from pathlib import Path

from tinystory.checkpoint import load_model, read_header, save_checkpoint
from tinystory.checkpoint.tokenizers import load_tokenizer
from tinystory.errors import TinystoryError, UsageError


def ship(checkpoint: Path, out: Path, card: str | None) -> None:
    """Write weights, vocabulary and `tinystory.json` of a checkpoint to a new folder, with a model card.

    Raises:
        TinystoryError: the checkpoint cannot be read or written.
    """
    header = read_header(checkpoint)
    tokenizer = load_tokenizer(header)
    save_checkpoint(
        out,
        load_model(header),
        tokenizer.to_json(),
        bos_id=tokenizer.bos_id,
        eos_ids=tokenizer.eos_ids,
        dtype="bfloat16",
        provenance=header.provenance,
        model_card=card,
    )


def main() -> int:
    """Parse the command line, write, and print the size; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="a checkpoint of a run")
    parser.add_argument("--card", type=Path, metavar="FILE", help="the model card, in Markdown")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write")
    args = parser.parse_args()
    try:
        try:
            card = args.card.read_text(encoding="utf-8") if args.card else None
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{args.card} cannot be read: {error}") from error
        ship(args.checkpoint, args.out, card)
    except TinystoryError as error:
        print(f"ship: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{args.out}: {(args.out / 'model.safetensors').stat().st_size:,} bytes of weights")
    return 0


if __name__ == "__main__":
    sys.exit(main())
