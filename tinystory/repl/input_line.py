"""The input line: its keys, its history, its completion and the toolbar under it.

These keys are added to those of prompt_toolkit (Emacs or vi, history, search, completion).
"""

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app, run_in_terminal
from prompt_toolkit.completion import CompleteEvent, get_common_complete_suffix
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import emacs_mode, has_focus, vi_navigation_mode
from prompt_toolkit.history import History
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import ColorDepth
from prompt_toolkit.styles import Style
from prompt_toolkit.utils import get_cwidth

from tinystory.decoding.spec import shown_spec
from tinystory.decoding.spec_text import stage_names
from tinystory.folders import sessions_folder
from tinystory.repl.browser import LONE_ESCAPE_SECONDS
from tinystory.repl.completion import Names, StudioCompleter
from tinystory.repl.settings import ChatSettings
from tinystory.safe.showing import visible
from tinystory.story.branches import typed_end
from tinystory.studio.keeper import session_names
from tinystory.studio.presets import preset_names
from tinystory.studio.studio import Studio

__all__ = ["PROMPT", "Pastes", "bindings", "input_line", "read_line", "toolbar"]

PROMPT = "> "
_LONGEST_HELP = 40
"""Characters of a turn beside its number in the menu of Tab."""
_LONGEST_PASTE = 20_000
"""Characters of the longest pasted text that is shown. The input line is drawn anew for each key, in 30 ms then."""
_MOST_ERRORS = 10
"""Errors of one input line. A line that cannot be drawn would have one after the other."""


class Pastes:
    """The long texts that were pasted in this chat. The input line has a mark in place of each."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def shown(self, text: str) -> str:
        """Return what stands in the input line for a pasted text: the text itself, or a mark if it is long."""
        if len(text) <= _LONGEST_PASTE:
            return text
        mark = f"[pasted text {len(self._texts) + 1}: {len(text):,} characters]"
        self._texts[mark] = text
        return mark

    def whole(self, typed: str) -> str:
        """Return what was typed, with the texts in place of their marks."""
        for mark, text in self._texts.items():
            typed = typed.replace(mark, text)
        return typed


def input_line(
    studio: Studio,
    settings: ChatSettings,
    history: History,
    go_aside: Callable[[int], None],
    browse: Callable[[], None],
    edit: Callable[[], None],
    pastes: Pastes,
) -> PromptSession[str]:
    """Return the input line of a chat; `read_line` reads one text from it.

    Args:
        studio: the studio that completion and toolbar ask.
        settings: gives the keys and the colours.
        history: the earlier texts.
        go_aside: goes to another branch, as in `bindings`.
        browse: opens the token browser, as in `bindings`.
        edit: opens the typed text in an editor, as in `bindings`.
        pastes: keeps long pasted texts.
    """
    session: PromptSession[str] = PromptSession(
        PROMPT,
        multiline=True,
        prompt_continuation=" " * len(PROMPT),
        history=history,
        key_bindings=bindings(go_aside, browse, edit, pastes),
        vi_mode=settings.keys == "vi",
        completer=StudioCompleter(studio.registry, _names(studio)),
        complete_while_typing=False,
        enable_suspend=True,
        bottom_toolbar=lambda: toolbar(_toolbar_pieces(studio), get_app().output.get_size().columns),
        style=Style.from_dict({"bottom-toolbar": "reverse" if settings.color else "noreverse"}),
        color_depth=None if settings.color else ColorDepth.DEPTH_1_BIT,
        # The typed text is printed again, as a part of the story or as a command.
        erase_when_done=True,
    )
    session.app.ttimeoutlen = LONE_ESCAPE_SECONDS
    # A terminal that does not tell where its cursor is only has no toolbar; that needs no warning.
    session.app.renderer.cpr_not_supported_callback = None
    # Importing torch blocks Python for long moments, so it begins when the input line is on the screen.
    session.app.after_render += lambda _: studio.backend.start()
    return session


def _names(studio: Studio) -> Names:
    """Return the names that Tab offers, looked up when it is pressed."""
    return Names(
        preset_names,
        lambda: session_names(sessions_folder()),
        lambda: stage_names(studio.decoder),
        lambda: _turn_names(studio),
    )


def _turn_names(studio: Studio) -> Iterator[tuple[str, str]]:
    """Yield the numbers of the turns with their first words, the latest first, then the blank page."""
    for turn in reversed(studio.tree.turns.values()):
        words = turn.own[typed_end(turn) :].strip() or turn.own  # branches of one prompt begin with the same words
        yield str(turn.id), " ".join(words[:_LONGEST_HELP].split())
    yield "0", "the blank page"


def read_line(session: PromptSession[str], tell: Callable[[Exception], None]) -> str:
    """Read one text from an input line. An error in its keys, its completion or its picture is told, and it goes on.

    prompt_toolkit would show a traceback and wait for Enter.

    Args:
        session: the input line.
        tell: shows an error. An input line that has only errors is ended by the last one.

    Raises:
        EOFError: for Ctrl-D.
        KeyboardInterrupt: for Ctrl-C.
    """
    n_errors = 0

    def answer(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal n_errors
        error = context.get("exception") or RuntimeError(context["message"])
        if not isinstance(error, Exception):  # the program ends, and `prompt` raises it, too
            return
        n_errors += 1
        if n_errors < _MOST_ERRORS:
            run_in_terminal(lambda: tell(error))
        elif n_errors == _MOST_ERRORS and session.app.is_running:
            session.app.exit(exception=error)

    return session.prompt(
        pre_run=lambda: asyncio.get_running_loop().set_exception_handler(answer), set_exception_handler=False
    )


def bindings(
    go_aside: Callable[[int], None], browse: Callable[[], None], edit: Callable[[], None], pastes: Pastes
) -> KeyBindings:
    """Return the key bindings of the input line.

    Enter sends. Alt-Enter and Ctrl-J begin a new line. Tab completes. Ctrl-C clears the line; on an empty line it
    raises KeyboardInterrupt. A bracketed paste is inserted with its newlines, so a paste never sends. Keys with Alt are
    for the keys of Emacs only: in vi, Escape is a key of its own.

    Args:
        go_aside: goes to the branch that is `step` places further, for Alt-Left (-1) and Alt-Right (1).
        browse: opens the token browser, for Alt-Up.
        edit: opens the typed text in an editor, for Ctrl-X Ctrl-E, and for `v` in vi.
        pastes: keeps long pasted texts.
    """
    keys = KeyBindings()
    typing = has_focus(DEFAULT_BUFFER)  # while the history is searched, these keys have other meanings

    @keys.add("enter", filter=typing)
    def _send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("c-j", filter=typing)
    @keys.add("escape", "enter", filter=typing & emacs_mode)
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @keys.add("<bracketed-paste>", filter=typing)
    def _paste(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        text = event.data.replace("\r\n", "\n").replace("\r", "\n")
        # A copied line often comes with its newline, which would end the line of the story.
        text = text if buffer.document.text_after_cursor else text.rstrip("\n")
        if buffer.selection_state:
            buffer.cut_selection()
        buffer.insert_text(pastes.shown(text))

    @keys.add("tab", filter=typing)
    def _complete(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        buffer.exit_selection()
        if buffer.complete_state:
            buffer.complete_next()
        else:
            # Complete at once. A task of its own would be cancelled by the next key when keys come in a burst.
            request = CompleteEvent(completion_requested=True)
            completions = list(buffer.completer.get_completions(buffer.document, request))
            common_suffix = get_common_complete_suffix(buffer.document, completions)
            if common_suffix:
                buffer.insert_text(common_suffix)
            elif completions:
                buffer.start_completion()

    @keys.add("c-c", filter=typing)
    @keys.add("<sigint>")
    def _clear(event: KeyPressEvent) -> None:
        buffer = event.app.current_buffer
        if buffer.text:
            buffer.append_to_history()  # Up brings it back
            buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt())

    @keys.add("escape", "left", filter=typing & emacs_mode)
    def _branch_before(event: KeyPressEvent) -> None:
        go_aside(-1)

    @keys.add("escape", "right", filter=typing & emacs_mode)
    def _branch_after(event: KeyPressEvent) -> None:
        go_aside(1)

    @keys.add("escape", "up", filter=typing & emacs_mode)
    def _open_browser(event: KeyPressEvent) -> None:
        browse()

    @keys.add("c-x", "c-e", filter=typing & emacs_mode)
    @keys.add("v", filter=typing & vi_navigation_mode)
    def _open_editor(event: KeyPressEvent) -> None:
        edit()

    return keys


def toolbar(pieces: Sequence[str], width: int) -> str:
    """Return as many of the pieces, from the first on, as fit on one line of `width` cells."""
    text = ""
    for piece in map(visible, pieces):
        longer = f"{text} · {piece}" if text else f" {piece}"
        if get_cwidth(longer) + 1 > width:
            break
        text = longer
    return text.replace("\n", " ")


def _toolbar_pieces(studio: Studio) -> list[str]:
    """Return model, decoder, seed and context, the most important first."""
    n_tokens = studio.tree.turn.n_tokens if studio.tree.turn else 0
    context = studio.backend.max_seq_len
    return [
        os.path.basename(studio.backend.name.rstrip(os.sep)) or studio.backend.name,
        shown_spec(studio.decoder),
        "random seed" if studio.seed is None else f"seed {studio.seed}",
        f"{n_tokens} tokens, context {context}"
        if context and n_tokens > context
        else f"{n_tokens} of {context or '?'} tokens",
    ]
