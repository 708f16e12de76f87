"""What the commands that write stories share: prompt, seed, interrupts, notices, and the fields of their JSON."""

import argparse
import importlib
import importlib.metadata
import os
import platform
import random
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

import tinystory
from tinystory.errors import UsageError
from tinystory.safe.showing import visible
from tinystory.session.loading import LoadedModel, load_header, load_without_torch

if TYPE_CHECKING:
    from tinystory.checkpoint import CheckpointHeader
    from tinystory.decoding import Decoder
    from tinystory.writing.generate import Story, TextEvent

__all__ = [
    "check_stop", "common_fields", "event_fields", "import_torch_meanwhile", "interrupts", "load_to_write",
    "load_with_torch", "note", "prompt_of", "seed_of", "story_fields", "styled", "warn",
]  # fmt: skip


def check_stop(args: argparse.Namespace) -> None:
    """Refuse an empty stop text before anything is loaded; make all of them UTF-8.

    Raises:
        UsageError: one is empty.
    """
    if not all(args.stop):
        raise UsageError("a stop text is empty; it would end the story before its first word")
    args.stop = list(map(_utf8, args.stop))


def prompt_of(args: argparse.Namespace) -> str:
    """The prompt of the command line, else of standard input unless that is a terminal, without its last newline."""
    if args.prompt is not None:
        return _utf8(args.prompt)
    if sys.stdin is None or sys.stdin.isatty():
        return ""
    return sys.stdin.buffer.read().decode("utf-8", errors="replace").removesuffix("\n")


def _utf8(text: str) -> str:
    """The text without the surrogates that stand for bytes that are no UTF-8: no tokenizer takes them."""
    return text.encode("utf-8", errors="surrogateescape").decode("utf-8", errors="replace")


def seed_of(args: argparse.Namespace) -> int:
    """The seed of the command line, else a fresh one."""
    return random.SystemRandom().randrange(2**32) if args.seed is None else int(args.seed)


def load_to_write(args: argparse.Namespace, name: str, header: "CheckpointHeader", *decoders: "Decoder") -> LoadedModel:
    """The model; without torch where that is enough, since importing it takes longer than a story."""
    if _needs_torch(args, header, decoders):
        return load_with_torch(args, name, header)
    return _noted(args, load_without_torch(name, header, compiled=args.compile))


def load_with_torch(args: argparse.Namespace, name: str, header: "CheckpointHeader") -> LoadedModel:
    """The model as the command line wants it."""
    return _noted(args, load_header(name, header, args.dtype, args.device, compiled=args.compile))


def _noted(args: argparse.Namespace, model: LoadedModel) -> LoadedModel:
    """Say what building the model's code took, where it was built now."""
    if model.compile_seconds:
        note(args, f"compiled for this processor in {model.compile_seconds:.1f} s, kept for the next start")
    return model


def import_torch_meanwhile(args: argparse.Namespace, header: "CheckpointHeader", *decoders: "Decoder") -> None:
    """Begin to import torch, where it is needed, while a prompt is on its way through a pipe."""
    if args.prompt is None and _needs_torch(args, header, decoders):
        # A daemon: whoever gives up does not wait for it.
        threading.Thread(target=importlib.import_module, args=("torch",), daemon=True).start()


def _needs_torch(args: argparse.Namespace, header: "CheckpointHeader", decoders: Sequence["Decoder"]) -> bool:
    from tinystory.session.numpy_session import suffices

    return not all(suffices(header, decoder, args.dtype, args.device) for decoder in decoders)


@contextmanager
def interrupts() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying at once: the text so far is kept. A second one is not held."""
    received: list[int] = []
    old: dict[int, Any] = {}

    def take(number: int, frame: FrameType | None) -> None:
        if received:
            previous = old[number]
            if callable(previous):
                previous(number, frame)
        received.append(number)

    for kind in (signal.SIGINT, signal.SIGTERM):
        old[kind] = signal.signal(kind, take)
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def warn(args: argparse.Namespace, lines: Sequence[str]) -> None:
    """Say something on standard error, unless told to be quiet."""
    if not args.quiet:
        for line in lines:
            print(f"tinystory: {visible(line)}", file=sys.stderr)


def note(args: argparse.Namespace, line: str) -> None:
    """A dim line on standard error, unless told to be quiet."""
    if not args.quiet:
        print(f"\x1b[2m{line}\x1b[0m" if styled(args, sys.stderr) else line, file=sys.stderr)


def styled(args: argparse.Namespace, stream: TextIO) -> bool:
    """Whether escape sequences may go to a stream."""
    plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    return args.color == "always" or (args.color == "auto" and stream.isatty() and not plain)


def common_fields(args: argparse.Namespace, model: LoadedModel, seed: int) -> dict[str, Any]:
    """What holds for every story of a call."""
    return {
        "seed": seed,
        "model": model.name,
        "model_hash": model.hash_if_known,
        "dtype": model.dtype,
        "device": model.device,
        "threads": model.threads,
        "compiled": model.compile_seconds is not None,
        "max_tokens": args.max_tokens,
        "versions": {
            "tinystory": tinystory.__version__,
            "torch": importlib.metadata.version("torch"),
            "python": platform.python_version(),
        },
    }


def story_fields(story: "Story") -> dict[str, Any]:
    """What holds for one story."""
    return {
        "prompt": story.request.prompt,
        "text": story.text,
        "completion": story.completion,
        "token_ids": list(story.token_ids),
        "finish_reason": story.finish_reason,
        "statistics": story.statistics,
    }


def event_fields(event: "TextEvent") -> dict[str, Any]:
    """One event as a line of JSON; the end with its story."""
    from tinystory.writing.generate import DraftText, Ended, Text

    if isinstance(event, Text):
        token_ids = [token.id for token in event.tokens]
        return {"story": event.story, "event": "text", "text": event.text, "token_ids": token_ids}
    if isinstance(event, DraftText):
        return {"story": event.story, "event": "draft", "text": event.text}
    if isinstance(event, Ended):
        return {"story": event.story, "event": "end"} | story_fields(event.result)
    return {"story": event.story, "event": "trimmed", "n_tokens": event.n_tokens}
