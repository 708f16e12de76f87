"""Key bindings of the prompt, on top of prompt_toolkit's own (Emacs or vi, history, search, completion)."""

from collections.abc import Callable

from prompt_toolkit.completion import CompleteEvent, get_common_complete_suffix
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

__all__ = ["bindings"]


def bindings(
    aside: Callable[[int], None] = lambda step: None, browse: Callable[[], None] = lambda: None
) -> KeyBindings:
    """Enter sends; Alt-Enter and Ctrl-J make a new line; Tab completes; Ctrl-C clears, on an empty line it raises.

    A bracketed paste is inserted by prompt_toolkit with its newlines, so it never sends.

    Args:
        aside: goes to the branch so many places further, for Alt-Left and Alt-Right.
        browse: opens the token browser, for Alt-Up.
    """
    keys = KeyBindings()
    typing = has_focus(DEFAULT_BUFFER)  # and not searching the history, where these keys mean other things

    @keys.add("enter", filter=typing)
    def _send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("c-j", filter=typing)
    @keys.add("escape", "enter", filter=typing)
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @keys.add("tab", filter=typing)
    def _complete(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.complete_state:
            buffer.complete_next()
        else:
            # At once rather than in a task of its own, which the next key would cancel when keys come in a burst.
            found = list(buffer.completer.get_completions(buffer.document, CompleteEvent(completion_requested=True)))
            certain = get_common_complete_suffix(buffer.document, found)
            if certain:
                buffer.insert_text(certain)
            elif found:
                buffer.start_completion()

    @keys.add("c-c", filter=typing)
    @keys.add("<sigint>")
    def _clear(event: KeyPressEvent) -> None:
        buffer = event.app.current_buffer
        if buffer.text:
            buffer.append_to_history()  # so that Up brings it back
            buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt())

    @keys.add("escape", "left", filter=typing)
    def _branch_before(event: KeyPressEvent) -> None:
        aside(-1)

    @keys.add("escape", "right", filter=typing)
    def _branch_after(event: KeyPressEvent) -> None:
        aside(1)

    @keys.add("escape", "up", filter=typing)
    def _open_browser(event: KeyPressEvent) -> None:
        browse()

    return keys
