"""The prompt loop: reads a line, lets the studio act on it, shows what comes of it, until the user leaves."""

import os
import re
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import closing, nullcontext
from functools import partial

from prompt_toolkit import PromptSession
from prompt_toolkit.application import create_app_session, get_app
from prompt_toolkit.history import History, InMemoryHistory
from prompt_toolkit.output import ColorDepth
from prompt_toolkit.output.plain_text import PlainTextOutput
from prompt_toolkit.styles import Style
from prompt_toolkit.utils import is_dumb_terminal

from tinystory.errors import TinystoryError, UsageError
from tinystory.generate import Ended, Text, Trimmed
from tinystory.plugins import discover
from tinystory.repl.backend import ModelBackend
from tinystory.repl.commands import execute
from tinystory.repl.completion import StudioCompleter
from tinystory.repl.history import history_file, open_history
from tinystory.repl.keys import bindings
from tinystory.repl.render import Line, Screen, statistics_line, toolbar
from tinystory.repl.settings import ChatSettings
from tinystory.repl.studio import Studio, Turn
from tinystory.repl.terminal import Writing
from tinystory.spec import parse_spec

__all__ = ["App", "ChatSettings", "chat"]

PROMPT = "> "
INTERRUPTED = 130
_TWICE_SECONDS = 2.0
_SURROGATE = re.compile("[\ud800-\udfff]")

_WELCOME = (
    "Type how a story begins and press Enter. Enter alone goes on, Ctrl-C stops.\n"
    "/decoder changes how tokens are picked, /help lists the rest, Tab completes.\n"
    "Ctrl-D leaves."
)
_WELCOME_BACK = "/help lists the commands"


def chat(settings: ChatSettings) -> int:
    """Run a chat on this terminal.

    Decoder, decoder files and the checkpoint's header are checked before the prompt appears; torch and the weights
    come in the background.

    Returns:
        The exit code: 0, or 130 after Ctrl-C twice.

    Raises:
        UsageError: the decoder or a decoder file is wrong.
        CheckpointError: the model is missing or invalid.
    """
    if not all(settings.stop):
        raise UsageError("a stop text is empty; it would end the story before its first word")
    registry = discover(settings.decoder_files)
    decoder = parse_spec(settings.decoder, registry)
    open_model = partial(ModelBackend.open, dtype=settings.dtype, device=settings.device)
    studio = Studio(
        registry,
        decoder,
        open_model(settings.model),
        open_model,
        settings.seed,
        settings.max_tokens,
        settings.stop,
    )
    path = history_file()
    first_time = not path.exists()
    app = App(studio, Screen(sys.stdout, color=settings.color), settings, open_history(path))
    if not settings.quiet:
        app.screen.show(Line(_WELCOME if first_time else _WELCOME_BACK, "dim"))
        app.screen.show(*(Line(warning, "dim") for warning in registry.warnings))
    return app.run()


class App:
    """A studio at a terminal."""

    def __init__(self, studio: Studio, screen: Screen, settings: ChatSettings, history: History | None = None) -> None:
        self.studio = studio
        self.screen = screen
        self.settings = settings
        self._dumb = is_dumb_terminal()
        self._history = history or InMemoryHistory()
        self._last_interrupt = float("-inf")
        # What is plain enough for a dumb terminal goes there without a single escape.
        plain = create_app_session(output=PlainTextOutput(sys.stdout)) if self._dumb else nullcontext()
        with plain:
            self._session = self._prompt_session()
        # Importing torch holds Python's lock for long moments: it begins when the prompt is on the screen.
        self._session.app.after_render += lambda _: studio.backend.start()

    def _prompt_session(self) -> PromptSession[str]:
        return PromptSession(
            PROMPT,
            multiline=True,
            prompt_continuation=" " * len(PROMPT),
            history=self._history,
            key_bindings=bindings(),
            completer=StudioCompleter(self.studio.registry),
            complete_while_typing=False,
            enable_suspend=True,
            bottom_toolbar=self._toolbar,
            style=Style.from_dict({"bottom-toolbar": "reverse" if self.settings.color else "noreverse"}),
            color_depth=None if self.settings.color else ColorDepth.DEPTH_1_BIT,
            # What was typed is printed again, as a part of the story or as a command.
            erase_when_done=True,
        )

    def run(self) -> int:
        """Prompt until the user leaves; the exit code."""
        try:
            if self.settings.prompt:
                self._guarded(partial(self._write, self.studio.begin(self.settings.prompt)))
            if self._dumb:  # whose prompt is not rendered
                self.studio.backend.start()
            return self._loop()
        finally:
            self.screen.fresh_line()

    def _loop(self) -> int:
        while True:
            try:
                self.screen.gap()
                text = self._session.prompt()
            except EOFError:
                return 0
            except KeyboardInterrupt:
                now = time.monotonic()
                if now - self._last_interrupt <= _TWICE_SECONDS:
                    return INTERRUPTED
                self._last_interrupt = now
                self._notice("Ctrl-C once more leaves; so does Ctrl-D")
                continue
            if self._guarded(partial(self._act, text)):
                return 0

    def _act(self, typed: str) -> bool:
        """Do what a line asks for; True to leave."""
        text = _SURROGATE.sub("\ufffd", typed)  # bytes that are no UTF-8 arrive as surrogates
        if text.startswith("/") and not text.startswith("//"):
            if not self._dumb:  # where nothing can be erased, the line is still there
                self.screen.show(Line(PROMPT + text, "dim"))
            reply = execute(self.studio, text)
            self.screen.show(*reply.blocks)
            if reply.turn:
                self._write(reply.turn)
            return reply.leave
        text = text.removeprefix("/") if text.startswith("//") else text
        self._write(self.studio.turn(text.rstrip(" \t")))
        return False

    def _write(self, turn: Turn) -> None:
        """Stream a turn, and say in one line what it was."""
        studio, screen = self.studio, self.screen
        screen.fresh_line()
        with Writing() as writing:
            if studio.backend.loading:
                self._notice(f"loading {studio.backend.name} …")
            try:
                ready = studio.backend.wait(lambda: writing.interrupted)
            finally:
                screen.story(turn.added, "bold")
            if not ready:
                studio.keep(turn)
                self._notice("cancelled while the model was loading; Enter goes on")
                return
            trimmed: Trimmed | None = None
            with closing(studio.write(turn, lambda: writing.interrupted)) as events:
                for event in events:
                    if isinstance(event, Text):
                        screen.story(event.text)
                    elif isinstance(event, Trimmed):
                        trimmed = event
                    elif isinstance(event, Ended):
                        if trimmed:
                            self._notice(
                                "the story has outgrown the model's context: its oldest sentences are out of sight"
                            )
                        self._notice(statistics_line(event.result, studio.spec))

    def _guarded(self, action: Callable[[], bool | None]) -> bool:
        """Run an action; whatever goes wrong is said, and the chat lives on."""
        try:
            return bool(action())
        except KeyboardInterrupt:
            self.screen.show(Line("cancelled", "note"))
        except TinystoryError as error:
            self._trace(error)
            self.screen.show(Line(str(error)))
        except Exception as error:
            self._trace(error)
            summary = f"{type(error).__name__}: {error}".splitlines()[0]
            hint = "" if self.settings.verbose else "; tinystory chat -v shows where"
            self.screen.show(Line(f"unexpected error ({summary}){hint}, please report it"))
        return False

    def _trace(self, error: Exception) -> None:
        if self.settings.verbose:
            self.screen.show(Line("".join(traceback.format_exception(error)).rstrip(), "dim"))

    def _notice(self, text: str) -> None:
        if self.settings.quiet:
            self.screen.fresh_line()
        else:
            self.screen.show(Line(text, "note"))

    def _toolbar(self) -> str:
        studio = self.studio
        n_tokens = len(studio.story.token_ids or ()) if studio.story else 0
        window = studio.backend.max_seq_len
        pieces = [
            os.path.basename(studio.backend.name.rstrip(os.sep)) or studio.backend.name,
            studio.spec,
            "random seed" if studio.seed is None else f"seed {studio.seed}",
            f"{n_tokens} tokens, {window} in sight"
            if window and n_tokens > window
            else f"{n_tokens} of {window or '?'} tokens",
        ]
        return toolbar(pieces, get_app().output.get_size().columns)
