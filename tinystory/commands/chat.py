"""`tinystory chat`: the REPL; without a terminal on both ends, one story."""

import argparse
import os
import sys

from tinystory.errors import UsageError

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    """Open the studio, or do what `generate` does when text is piped in or out."""
    if sys.stdin is None or not sys.stdin.isatty() or not sys.stdout.isatty():
        from tinystory.commands.generate import one as generate

        if args.resume is not None:
            raise UsageError("--resume opens a session at a terminal; here standard input or output is none")
        args.num, args.json, args.jsonl = 1, False, False
        args.prompts = args.out = args.batch_size = None
        return generate.run(args)
    from tinystory.commands.shared import check_stop, prompt_of
    from tinystory.repl.app import ChatSettings, chat

    check_stop(args)

    plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    return chat(
        ChatSettings(
            model=args.model,
            decoder=args.decoder,
            seed=args.seed,
            max_tokens=args.max_tokens,
            stop=tuple(args.stop),
            decoder_files=tuple(args.decoder_file),
            device=args.device,
            dtype=args.dtype,
            compiled=args.compile,
            color=args.color == "always" or (args.color == "auto" and not plain),
            quiet=args.quiet,
            verbose=args.verbose,
            prompt=prompt_of(args) or None,
            theme=args.theme,
            keys=args.keys,
            resume=args.resume,
            settings=args.settings,
        )
    )
