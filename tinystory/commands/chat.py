"""`tinystory chat`: the studio on a terminal. Without a terminal it writes one story, as `generate` does."""

import sys
from dataclasses import dataclass, replace

from tinystory.commands.shared.groups import PromptOptions, options_from
from tinystory.errors import UsageError
from tinystory.settings import Setting

__all__ = ["ChatOptions", "run"]


@dataclass(frozen=True, kw_only=True)
class ChatOptions(PromptOptions):
    """The options of `tinystory chat`.

    Attributes:
        decoder: the spec to begin with.
        resume: the session to go on with; an empty name is the latest, None is a new one.
        theme: the background of the terminal; one of `settings.CHOICES`.
        keys: the keys that edit a line; one of `settings.CHOICES`.
        settings: every setting and where it comes from.
    """

    decoder: str
    resume: str | None
    theme: str
    keys: str
    settings: tuple[Setting, ...]


def run(options: ChatOptions) -> int:
    """Run a chat and return its exit code. Write one story if standard input or output is no terminal.

    Raises:
        UsageError: `--resume` is given without a terminal, or a stop text is empty.
    """
    if sys.stdin is None or not sys.stdin.isatty() or not sys.stdout.isatty():
        from tinystory.commands import generate

        if options.resume is not None:
            raise UsageError("--resume opens a session at a terminal; here standard input or output is not a terminal")
        return generate.run(options_from(options, generate.GenerateOptions))
    from tinystory.commands.shared.prompt import prompt_of, stops_of
    from tinystory.repl.app import ChatSettings, chat
    from tinystory.screen.facts import styled

    return chat(
        replace(
            options_from(options, ChatSettings),
            prompt=prompt_of(options.prompt) or None,
            stop=stops_of(options.stop),
            decoder_files=options.decoder_file,
            color=styled(options.color, sys.stdout),
        )
    )
