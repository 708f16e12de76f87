"""A line that stands ready at the prompt: Enter sends it, typing replaces it, an arrow key lets one change it."""

import re

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.document import Document
from prompt_toolkit.enums import EditingMode
from prompt_toolkit.filters import Condition
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent, merge_key_bindings
from prompt_toolkit.selection import SelectionState

from tinystory.errors import TinystoryError

__all__ = ["ReadyLine", "corrected"]


class ReadyLine:
    """The line that is offered at the prompt of a chat.

    Attributes:
        next: the line for the next prompt; empty if there is none.
        present: the line with which the present prompt began.
    """

    def __init__(self) -> None:
        self.next = ""
        self.present = ""

    def bind(self, session: PromptSession[str]) -> None:
        """Add the keys of an unchanged line. Ctrl-C and Ctrl-D do what they do on an empty line; Ctrl-E types on."""
        keys = KeyBindings()
        unchanged = Condition(lambda: self.is_present(get_app().current_buffer.text))

        @keys.add("c-e", filter=unchanged)
        def _type_on(event: KeyPressEvent) -> None:
            event.current_buffer.exit_selection()
            event.current_buffer.cursor_position = len(event.current_buffer.text)

        @keys.add("c-c", filter=unchanged, eager=True)  # over a selection, Emacs has longer keys that begin so
        def _put_away(event: KeyPressEvent) -> None:
            event.app.exit(exception=KeyboardInterrupt())

        @keys.add("c-d", filter=unchanged, eager=True)
        def _leave(event: KeyPressEvent) -> None:
            event.app.exit(exception=EOFError())

        session.key_bindings = merge_key_bindings([session.key_bindings or KeyBindings(), keys])

    def is_present(self, text: str) -> bool:
        """Return whether a text is the offered line, unchanged."""
        return bool(self.present) and text == self.present

    def put(self, session: PromptSession[str] | None) -> None:
        """Let the next input line begin with the line. A dumb terminal has no session, and gets none.

        In vi the line is not selected, because typing over a selection is a habit of other editors.
        """
        self.present, self.next = self.next, ""
        if session is None or not self.present:
            return
        line, buffer = self.present, session.default_buffer

        def begin() -> None:
            buffer.document = Document(line, len(line))
            if session.editing_mode is not EditingMode.EMACS:
                return
            state = buffer.selection_state = SelectionState(0)
            state.enter_shift_mode()

            def release(_: object) -> None:
                buffer.on_cursor_position_changed -= release
                if buffer.selection_state is state:
                    buffer.exit_selection()

            buffer.on_cursor_position_changed += release

        session.app.pre_run_callables.append(begin)


def corrected(line: str, error: TinystoryError) -> str:
    """Return a line with the name that was probably meant in the place of a wrong one; empty if that is not known.

    >>> corrected("/decoder topk 40", TinystoryError().correcting("topk", "top-k"))
    '/decoder top-k 40'
    """
    typed, name = error.correction or ("", "")
    if not typed:
        return ""
    better, n_changed = re.subn(rf"(?<![\w/-]){re.escape(typed)}(?![\w-])", lambda _: name, line, count=1)
    return better if n_changed else ""
