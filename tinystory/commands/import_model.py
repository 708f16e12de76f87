"""`tinystory import`: a checkpoint from weights in llama2.c's format."""

import argparse
import sys

from tinystory.safe.showing import visible

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    """Convert, and say how to use the result."""
    from tinystory.checkpoint.formats.llama2c import import_llama2c

    import_llama2c(args.file, args.tokenizer, args.out)
    if not args.quiet:
        sys.stderr.write(f"{visible(str(args.out))} is ready: tinystory chat -m {visible(str(args.out))}\n")
    return 0
