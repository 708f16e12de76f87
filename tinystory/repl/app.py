"""The loop of a chat: it reads a text, lets the studio act on it, and shows the result, until the user leaves."""

import asyncio
import base64
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial

from prompt_toolkit import PromptSession
from prompt_toolkit.application import Application, create_app_session, in_terminal, run_in_terminal
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.document import Document
from prompt_toolkit.history import History, InMemoryHistory

from tinystory.decoding.plugins import discover
from tinystory.decoding.spec import parse_spec
from tinystory.decoding.spec_text import temperature_notes
from tinystory.errors import OUT_OF_MEMORY, TinystoryError, UsageError, is_out_of_memory, one_line
from tinystory.folders import history_file
from tinystory.interrupts import HANG_UP, Terminated, whole_imports
from tinystory.repl.browser import Browser, browser_of
from tinystory.repl.chooser import Chooser, asks, check_alone
from tinystory.repl.commands import DeskStory, Reply, execute, meaning
from tinystory.repl.commands.tree import step_aside
from tinystory.repl.editor import edit_text
from tinystory.repl.guide.guide import Guide
from tinystory.repl.guide.ready_line import corrected
from tinystory.repl.guide.welcome import welcome
from tinystory.repl.history import open_history
from tinystory.repl.input_line import PROMPT, Pastes, input_line, read_line
from tinystory.repl.keys import early_keys, plain_line, strict_keys
from tinystory.repl.settings import ChatSettings
from tinystory.repl.stream import show_columns, show_picked, show_story, show_versus, stream
from tinystory.safe.reading import is_absent
from tinystory.screen.blocks import Line
from tinystory.screen.colours import background
from tinystory.screen.facts import is_dumb
from tinystory.screen.lease import TerminalLease, output_until_hang_up
from tinystory.screen.screen import Screen
from tinystory.screen.terminal import Hushed, Writing
from tinystory.studio.backend import ModelBackend
from tinystory.studio.keeper import Keeper
from tinystory.studio.recall import words_before
from tinystory.studio.studio import Studio
from tinystory.studio.turn_request import TurnRequest

__all__ = ["App", "ChatSettings", "chat"]

INTERRUPTED = 130
_TWICE_SECONDS = 2.0
_SURROGATE = re.compile("[\ud800-\udfff]")


def chat(settings: ChatSettings) -> int:
    """Run a chat on this terminal.

    The decoder, the decoder files and the header of the checkpoint are checked before the input line appears. torch
    and the weights are loaded in the background.

    Returns:
        The exit code: 0, or 130 after Ctrl-C twice.

    Raises:
        UsageError: the decoder, a stop text or a decoder file is wrong.
        CheckpointError: the model is missing or invalid.
    """
    if not all(settings.stop):
        raise UsageError("a stop text is empty; it would end the story before its first word")
    registry = discover(settings.decoder_files)
    decoder = parse_spec(settings.decoder, registry)
    open_model = partial(ModelBackend.open, dtype=settings.dtype, device=settings.device, engine=settings.engine)
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
    notices = [] if settings.resume is None else keeper.resume(settings.resume, _given_by_flag(settings))
    path = history_file()
    first_time = is_absent(path)
    try:
        with output_until_hang_up(), create_app_session():
            screen = Screen(sys.stdout, color=settings.color, theme=background(settings.theme))
            app = App(studio, screen, settings, open_history(path), keeper)
            if not settings.quiet:
                screen.show(Line(welcome(studio, screen.width, first_time=first_time), "dim"))
                screen.show(*(Line(warning, "dim") for warning in registry.warnings))
            screen.show(*(Line(notice, "note") for notice in (*notices, *temperature_notes(studio.decoder))))
            if studio.tree.turn is not None:
                show_story(studio, screen)
            return app.run()
    finally:
        keeper.close()


def _why_plain() -> str:
    """Return why this terminal has no colours, in words."""
    if is_dumb():
        return f"the terminal is a dumb one (TERM={os.environ.get('TERM', '')})"
    return "NO_COLOR is set" if os.environ.get("NO_COLOR") else "`color` is never (/config)"


def _given_by_flag(settings: ChatSettings) -> set[str]:
    """Return the settings given by flags. They win over those of a session that is resumed."""
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
        self._dumb = is_dumb()
        self._terminal = TerminalLease()
        self._pastes = Pastes()
        self._last_interrupt = float("-inf")
        self._guide = Guide(studio, screen)
        studio.choose = Chooser(studio, screen)
        self._session: PromptSession[str] | None = None  # a dumb terminal edits its lines itself
        if not self._dumb:
            history = history or InMemoryHistory()
            self._session = input_line(
                studio, settings, history, self._go_aside, self._browse, self._edit_line, self._pastes
            )
            strict_keys(self._session.input)
            self._guide.ready.bind(self._session)

    def run(self) -> int:
        """Read and act until the user leaves; return the exit code."""
        try:
            with self._terminal:
                if self._session is not None:
                    early_keys(self._session.input)
                if self.settings.prompt:
                    self._guarded(partial(self._begin, self.settings.prompt))
                if self._session is None:  # otherwise the first picture of the input line starts the model
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
                self._warn_of_model()
                self._guide.announce()
                self.screen.gap()
                text = self._guide.meaning(self._read())
            except EOFError:
                return 0
            except KeyboardInterrupt:
                if self._guide.ready.present:  # it was put away
                    self._guide.leave_tour()
                    continue
                now = time.monotonic()
                if now - self._last_interrupt <= _TWICE_SECONDS:
                    return INTERRUPTED
                self._last_interrupt = now
                self._notice("Ctrl-C once more leaves; so does Ctrl-D")
                continue
            if self._guarded(partial(self.do, text)):
                return 0

    def _read(self) -> str:
        """Read a text from the input line. If the program ends meanwhile, what was typed goes to the history.

        Raises:
            EOFError: for Ctrl-D.
            KeyboardInterrupt: for Ctrl-C.
            Terminated: the terminal is gone, or a signal ends the program.
        """
        self._guide.ready.put(self._session)
        if self._session is None:
            return plain_line(PROMPT)
        try:
            try:
                return self._pastes.whole(read_line(self._session, self._tell))
            except EOFError:
                if self._session.input.closed:
                    raise Terminated(HANG_UP) from None
                raise
        except Terminated:
            if not self._guide.ready.is_present(self._session.default_buffer.text):
                self._session.default_buffer.append_to_history()
            raise

    def _warn_of_model(self) -> None:
        for warning in self.studio.backend.take_warnings():
            self._notice(warning)

    def do(self, typed: str) -> bool:
        """Do what a typed text asks for; return True to leave."""
        text = _SURROGATE.sub("\ufffd", typed)  # bytes that are not UTF-8 arrive as surrogates
        text = meaning(text)
        if text.startswith("/") and not text.startswith("//"):
            if not self._dumb:  # a dumb terminal cannot erase, so the line is still on the screen
                self.screen.show(Line(PROMPT + text, "dim"))
            with Hushed(), whole_imports():  # without it, Ctrl-C would print ^C in the middle of the reply
                try:
                    reply = execute(self.studio, text, self.keeper)
                except TinystoryError as error:
                    self._guide.ready.next = corrected(text, error)
                    raise
            return self._answer(reply)
        text = text.removeprefix("/") if text.startswith("//") else text
        self._write((self.studio.next_turn(text.rstrip(" \t")),))
        return False

    def _answer(self, reply: Reply) -> bool:
        """Show a command's reply and do what it asks for; return True to leave."""
        for block in reply.blocks:
            if isinstance(block, DeskStory):
                show_story(self.studio, self.screen)
            else:
                self.screen.show(block)
        if reply.clipboard is not None:
            self._copy(reply.clipboard)
        if reply.edit is not None:
            with self._terminal.lent():
                edited = edit_text(reply.edit)
            request = None if edited is None else self.studio.edit(edited)
            if request is None:
                self._notice("nothing was changed")
            elif reply.fix:
                self.studio.keep(request)
                show_story(self.studio, self.screen)
            else:
                self._write((request,))
        if reply.requests:
            self._write(reply.requests, reply.titles)
        if reply.versus:
            with Writing() as writing:
                story_request = self.studio.opening(lambda: writing.interrupted)
                show_versus(self.screen, reply.titles, reply.versus, story_request, self._notice)
        if reply.tour:
            self._guide.begin_tour()
        if reply.walk is not None:
            self._walk(reply.walk)
        return reply.leave

    def _walk(self, position: str) -> None:
        """Open the token browser; a token that is taken becomes a /pick line, as if it were typed.

        Raises:
            Terminated: the terminal is gone.
        """
        try:
            choice = self._window(browser_of(self.studio, position)).run()
        except EOFError:
            raise Terminated(HANG_UP) from None
        if choice:
            self.screen.gap()
            self.do(_pick_line(*choice))

    def _window(self, browser: Browser) -> "Application[tuple[int, int] | None]":
        return browser.application(color=self.settings.color, theme=self.screen.theme)

    def _write(self, requests: Sequence[TurnRequest], titles: Sequence[str] = ()) -> None:
        """Write the requested turns: several in columns under their titles, one as running text."""
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
                    screen.story(words_before(studio, requests[0]), "dim")
                    screen.story(requests[0].ahead if ready else requests[0].typed, "bold")
            if not ready:
                studio.keep(requests[0])
                self._notice("cancelled while the model was loading; Enter goes on")
                return
            self._warn_of_model()
            with closing(studio.write(requests, lambda: writing.interrupted)) as events:
                if titles:
                    show_columns(studio, screen, titles, events, self._notice)
                elif asking:
                    show_picked(studio, screen, events, self._notice)
                else:
                    stream(studio, screen, events, self._notice)
            if writing.interrupted:
                self._guide.leave_tour()

    def _go_aside(self, step: int) -> None:
        """Go to another branch while the input line is open, and show its story above the line."""
        run_in_terminal(lambda: self._guarded(lambda: self._answer(step_aside(self.studio, step))))

    def _browse(self) -> None:
        """Open the token browser from the input line. The chosen token becomes a /pick line, as if it were typed."""

        async def browse(prompt: Application[str]) -> None:
            async with in_terminal():
                browsers: list[Browser] = []
                self._guarded(lambda: browsers.append(browser_of(self.studio)))
                # The browser and the input line read keys from one parser. The input line's timer for the key just
                # pressed may still run, and it would take an Escape that is meant for the browser.
                await asyncio.sleep(2 * prompt.ttimeoutlen)
                if not browsers:
                    return
                choice = await self._window(browsers[0]).run_async(set_exception_handler=False)  # `read_line` has one
            if choice:
                prompt.exit(result=_pick_line(*choice))

        if self._session is not None:
            self._session.app.create_background_task(browse(self._session.app))

    def _edit_line(self) -> None:
        """Open what is being typed in the user's editor, from the input line."""

        def edit(buffer: Buffer) -> None:
            with self._terminal.lent():
                edited = edit_text(self._pastes.whole(buffer.text))
            if edited is not None:
                shown = self._pastes.shown(edited)
                buffer.document = Document(shown, len(shown))

        if self._session is not None:
            buffer = self._session.default_buffer
            run_in_terminal(lambda: self._guarded(partial(edit, buffer)))

    def _copy(self, text: str) -> None:
        """Put a text on the clipboard of the user's terminal (OSC 52)."""
        if self._dumb:
            raise TinystoryError("this terminal has no clipboard; /export FILE writes the story to a file")
        self.screen.control(f"\x1b]52;c;{base64.b64encode(text.encode()).decode()}\x07")
        self._notice(f"{len(text):,} characters sent to the clipboard, if the terminal allows it")

    def _guarded(self, action: Callable[[], bool | None]) -> bool:
        """Run an action. Show an error instead of ending the chat."""
        try:
            return bool(action())
        except KeyboardInterrupt:
            self.screen.show(Line("cancelled", "note"))
            self._guide.leave_tour()
        except Exception as error:
            self._tell(error)
        return False

    def _tell(self, error: Exception) -> None:
        """Show an error in a few lines; after `-v` also where it arose."""
        if self.settings.verbose:
            self.screen.show(Line("".join(traceback.format_exception(error)).rstrip(), "dim"))
        if isinstance(error, TinystoryError):
            message = str(error)
        elif is_out_of_memory(error):
            message = OUT_OF_MEMORY
        else:
            hint = "" if self.settings.verbose else "; tinystory chat -v shows where"
            message = f"unexpected error ({one_line(error, kind=True)}){hint}, please report it"
        self.screen.show(Line(message))

    def _notice(self, text: str) -> None:
        if self.settings.quiet:
            self.screen.fresh_line()
        else:
            self.screen.show(Line(text, "note"))


def _pick_line(place: int, choice: int) -> str:
    """Return the command that takes an alternative of the browser."""
    return f"/pick {place + 1} #{choice + 1}"
