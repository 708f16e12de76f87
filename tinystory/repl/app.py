"""The prompt loop: reads a line, lets the studio act on it, shows what comes of it, until the user leaves."""

import asyncio
import base64
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from functools import partial

from prompt_toolkit import PromptSession
from prompt_toolkit.application import Application, create_app_session, get_app, in_terminal, run_in_terminal
from prompt_toolkit.history import History, InMemoryHistory
from prompt_toolkit.output import ColorDepth
from prompt_toolkit.output.plain_text import PlainTextOutput
from prompt_toolkit.styles import Style
from prompt_toolkit.utils import get_cwidth, is_dumb_terminal

from tinystory.decoding.plugins import discover
from tinystory.decoding.spec import parse_spec
from tinystory.errors import TinystoryError, UsageError, one_line
from tinystory.folders import history_file, sessions_folder
from tinystory.repl.browser import LONE_ESCAPE_SECONDS, Browser, browser_of
from tinystory.repl.chooser import Chooser, asks, check_alone
from tinystory.repl.commands import Reply, execute
from tinystory.repl.commands.tree import step_aside
from tinystory.repl.completion import Names, StudioCompleter
from tinystory.repl.editor import edit_text
from tinystory.repl.history import open_history
from tinystory.repl.keys import bindings
from tinystory.repl.settings import ChatSettings
from tinystory.repl.stream import show_columns, show_picked, show_story, stream
from tinystory.repl.versus import show_versus
from tinystory.safe.showing import visible
from tinystory.screen.blocks import DeskStory, Line
from tinystory.screen.screen import Screen, background
from tinystory.screen.terminal import Hushed, Writing
from tinystory.studio.backend import ModelBackend
from tinystory.studio.keeper import Keeper, session_names
from tinystory.studio.presets import preset_names
from tinystory.studio.studio import Studio
from tinystory.studio.turn_request import TurnRequest

__all__ = ["App", "ChatSettings", "chat", "toolbar"]

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
    open_model = partial(ModelBackend.open, dtype=settings.dtype, device=settings.device, compiled=settings.compiled)
    studio = Studio(
        registry,
        decoder,
        backend=open_model(settings.model),
        open_model=open_model,
        seed=settings.seed,
        max_tokens=settings.max_tokens,
        stop=settings.stop,
    )
    studio.plain = "" if settings.color else _why_plain()
    studio.settings = settings.settings
    keeper = Keeper(studio)
    resumed = [] if settings.resume is None else keeper.resume(settings.resume, _given(settings))
    path = history_file()
    first_time = not path.exists()
    screen = Screen(sys.stdout, color=settings.color, theme=background(settings.theme))
    app = App(studio, screen, settings, open_history(path), keeper)
    if not settings.quiet:
        app.screen.show(Line(_WELCOME if first_time else _WELCOME_BACK, "dim"))
        app.screen.show(*(Line(warning, "dim") for warning in registry.warnings))
    app.screen.show(*(Line(notice, "note") for notice in resumed))
    if studio.tree.turn is not None:
        show_story(studio, app.screen)
    try:
        return app.run()
    finally:
        keeper.close()


def _why_plain() -> str:
    """Why this terminal has no colours, in words."""
    if os.environ.get("TERM") == "dumb":
        return "the terminal is a dumb one (TERM=dumb)"
    return "NO_COLOR is set" if os.environ.get("NO_COLOR") else "`color` is never (/config)"


def _given(settings: ChatSettings) -> set[str]:
    """The settings that were said on the command line: those hold in a session that is resumed, too."""
    flags = {setting.name for setting in settings.settings if setting.origin.startswith("flag")}
    return flags | ({"stop"} if settings.stop else set())


class App:
    """A studio at a terminal."""

    def __init__(
        self,
        studio: Studio,
        screen: Screen,
        settings: ChatSettings,
        history: History | None = None,
        keeper: Keeper | None = None,
    ) -> None:
        self.studio = studio
        self.keeper = keeper
        self.screen = screen
        self.settings = settings
        self._dumb = is_dumb_terminal()
        self._history = history or InMemoryHistory()
        self._last_interrupt = float("-inf")
        studio.choose = Chooser(studio, screen)
        # What is plain enough for a dumb terminal goes there without a single escape.
        plain = create_app_session(output=PlainTextOutput(sys.stdout)) if self._dumb else nullcontext()
        with plain:
            self._session = self._prompt_session()
        self._session.app.ttimeoutlen = LONE_ESCAPE_SECONDS
        # Importing torch holds Python's lock for long moments: it begins when the prompt is on the screen.
        self._session.app.after_render += lambda _: studio.backend.start()

    def _prompt_session(self) -> PromptSession[str]:
        return PromptSession(
            PROMPT,
            multiline=True,
            prompt_continuation=" " * len(PROMPT),
            history=self._history,
            key_bindings=bindings(self._aside, self._browse),
            vi_mode=self.settings.keys == "vi",
            enable_open_in_editor=True,
            tempfile_suffix=".txt",
            completer=StudioCompleter(
                self.studio.registry, Names(preset_names, lambda: session_names(sessions_folder()))
            ),
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
                self._guarded(partial(self._begin, self.settings.prompt))
            if self._dumb:  # whose prompt is not rendered
                self.studio.backend.start()
            return self._loop()
        finally:
            self.screen.fresh_line()

    def _begin(self, prompt: str) -> None:
        self._write((self.studio.begin(_SURROGATE.sub("\ufffd", prompt)),))

    def _loop(self) -> int:
        while True:
            try:
                if self.keeper and (problem := self.keeper.problem()):
                    self.screen.show(Line(problem, "note"))
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
            if self._guarded(partial(self.do, text)):
                return 0

    def do(self, typed: str) -> bool:
        """Do what a line asks for; True to leave."""
        text = _SURROGATE.sub("\ufffd", typed)  # bytes that are no UTF-8 arrive as surrogates
        if text.startswith("/") and not text.startswith("//"):
            if not self._dumb:  # where nothing can be erased, the line is still there
                self.screen.show(Line(PROMPT + text, "dim"))
            with Hushed():  # or Ctrl-C would leave its ^C among what is said
                reply = execute(self.studio, text, self.keeper)
            return self._answer(reply)
        text = text.removeprefix("/") if text.startswith("//") else text
        self._write((self.studio.next_turn(text.rstrip(" \t")),))
        return False

    def _answer(self, reply: Reply) -> bool:
        """Do what a command has said is to be done."""
        for block in reply.blocks:
            if isinstance(block, DeskStory):
                show_story(self.studio, self.screen)
            else:
                self.screen.show(block)
        if reply.clipboard is not None:
            self._copy(reply.clipboard)
        if reply.edit is not None:
            edited = edit_text(reply.edit)
            request = None if edited is None else self.studio.edit(edited)
            if request is None:
                self._notice("nothing was changed")
            else:
                self._write((request,))
        if reply.requests:
            self._write(reply.requests, reply.titles)
        if reply.versus:
            with Writing() as writing:
                opening = self.studio.opening(lambda: writing.interrupted)
                show_versus(self.screen, reply.titles, reply.versus, opening, self._notice)
        return reply.leave

    def _write(self, requests: Sequence[TurnRequest], titles: Sequence[str] = ()) -> None:
        """Stream turns, and say in one line what they were."""
        studio, screen = self.studio, self.screen
        if titles:
            check_alone(request.decoder for request in requests)
        asking = asks(requests[0].decoder)
        screen.fresh_line()
        with Writing() as writing:
            if studio.backend.loading:
                self._notice(f"loading {studio.backend.name} …")
            ready = False
            try:
                ready = studio.backend.wait(lambda: writing.interrupted)
            finally:
                if not titles and not (asking and ready):
                    screen.story(requests[0].ahead if ready else requests[0].typed, "bold")
            if not ready:
                studio.keep(requests[0])
                self._notice("cancelled while the model was loading; Enter goes on")
                return
            with closing(studio.write(requests, lambda: writing.interrupted)) as events:
                if titles:
                    show_columns(studio, screen, titles, events, self._notice)
                elif asking:
                    show_picked(studio, screen, events, self._notice)
                else:
                    stream(studio, screen, events, self._notice)

    def _aside(self, step: int) -> None:
        """Go to another branch from the prompt, and show it above."""
        run_in_terminal(lambda: self._guarded(lambda: self._answer(step_aside(self.studio, step))))

    def _browse(self) -> None:
        """Open the token browser from the prompt; what is chosen there is done as if it had been typed."""

        async def browse(prompt: Application[str]) -> None:
            async with in_terminal():
                found: list[Browser] = []
                self._guarded(lambda: found.append(browser_of(self.studio)))
                # Both read from one parser, and the prompt's timer for the key just pressed may still be running: it
                # would take an Escape that was meant for the browser.
                await asyncio.sleep(2 * prompt.ttimeoutlen)
                choice = await found[0].application(color=self.settings.color).run_async() if found else None
            if choice:
                place, rank = choice
                prompt.exit(result=f"/pick {place + 1} #{rank + 1}")

        prompt = self._session.app
        prompt.create_background_task(browse(prompt))

    def _copy(self, text: str) -> None:
        """Put a text on the clipboard of whoever sits before the terminal (OSC 52)."""
        if self._dumb:
            raise TinystoryError("this terminal has no clipboard; /export FILE writes the story to a file")
        self.screen.control(f"\x1b]52;c;{base64.b64encode(text.encode()).decode()}\x07")
        self._notice(f"{len(text):,} characters sent to the clipboard, where the terminal allows it")

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
            summary = one_line(error, kind=True)
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
        n_tokens = len(studio.tree.token_ids(studio.tree.current))
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


def toolbar(pieces: Sequence[str], width: int) -> str:
    """As many of the pieces, the first ones first, as fit on one line."""
    text = ""
    for piece in map(visible, pieces):
        longer = f"{text} · {piece}" if text else f" {piece}"
        if get_cwidth(longer) + 1 > width:
            break
        text = longer
    return text.replace("\n", " ")
