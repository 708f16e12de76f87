"""Keys from the terminal: escape sequences that prompt_toolkit does not know, keys typed too early, dumb terminals.

prompt_toolkit takes an escape sequence that it does not know as an Escape and typed text. Here such a sequence is a key
that it does know, or nothing.
"""

import io
import os
import re
import sys

from prompt_toolkit.input import Input
from prompt_toolkit.input.ansi_escape_sequences import ANSI_SEQUENCES
from prompt_toolkit.input.typeahead import store_typeahead
from prompt_toolkit.input.vt100_parser import Vt100Parser
from prompt_toolkit.key_binding import KeyPress

from tinystory.interrupts import HANG_UP, Terminated

__all__ = ["StrictParser", "early_keys", "plain_line", "strict_keys"]

_STRING = r"(?:\]\d|P[\d>!$+|]|_G)[^\x07\x1b\r\n]*"
"""The answer to a question: OSC, DCS or APC, without its end. Alt and a letter begin in the same way."""
_SEQUENCE = re.compile(
    rf"""\x1b(?:
        \[\[. |                           # a function key of the Linux console
        \[M... |                          # a click, in the oldest form
        \[(?!M)[0-?]*[ -/]*[@-Z\\-~] |    # a control sequence (CSI): a key, or the answer to a question
        O[\d;]*[^\d;\x00-\x1f] |          # SS3: a key of the keypad
        {_STRING}(?:\x07|\x1b\\)
    )""",
    re.VERBOSE | re.DOTALL,
)
_BEGINNING = re.compile(rf"\x1b(?:\[\[?|\[M.{{0,2}}|\[[0-?]*[ -/]*|O[\d;]*|[\]P_]|{_STRING}\x1b?)?\Z", re.DOTALL)
_LONGEST = 4096
"""Characters of the longest sequence. Text that looks like the beginning of a longer one is typed text."""

_CURSOR_PLACE = re.compile(r"\x1b\[\d{1,5};\d{1,5}R")
"""prompt_toolkit takes it by its form. A click also has one, but nothing here asks for clicks."""
_OTHER_KEY = "\x1b[27;"
"""modifyOtherKeys. For prompt_toolkit, Shift and Enter is Enter."""
_CSI = re.compile(r"\x1b\[([0-9;:]*)([@-~])")
_SHIFT, _ALT, _CTRL = 1, 2, 4
_RELEASED = "3"
_ENTER, _NEW_LINE = "\r", "\n"
_KEYPAD = dict(zip("jklmnopqrstuvwxyX", "*+,-./0123456789=", strict=True)) | {"M": _ENTER, "I": "\t", " ": " "}
"""SS3 and this letter is a key of the keypad."""
_KITTY = dict(zip(range(57399, 57417), [*"0123456789./*-+", _ENTER, *"=,"], strict=True)) | dict(
    zip(
        range(57417, 57427),
        ["\x1b[D", "\x1b[C", "\x1b[A", "\x1b[B", "\x1b[5~", "\x1b[6~", "\x1b[H", "\x1b[F", "\x1b[2~", "\x1b[3~"],
        strict=True,
    )
)
"""The keys of the keypad in the protocol of kitty."""


class StrictParser(Vt100Parser):
    """A parser that types nothing for an escape sequence that it does not know.

    It knows what prompt_toolkit knows, the keypad, and the two newer forms of a key: `CSI code ; modifiers u` and
    `CSI 27 ; modifiers ; code ~` (modifyOtherKeys of xterm).
    """

    _held = ""

    def feed(self, data: str) -> None:
        """Take characters from the terminal."""
        data, self._held = self._held + data, ""
        place = 0
        while place < len(data):
            if self._in_bracketed_paste:
                super().feed(data[place:])  # calls this method for what follows the paste
                return
            escape = data.find("\x1b", place)
            if escape < 0:
                escape = len(data)
            if escape > place:
                super().feed(data[place:escape])
                place = escape
                continue
            sequence = _SEQUENCE.match(data, place)
            if sequence:
                place = sequence.end()
                for part in known(sequence[0]):
                    super().feed(part)
            elif len(data) - place < _LONGEST and _BEGINNING.match(data, place):
                self._held = data[place:]
                return
            else:
                super().feed("\x1b")
                place += 1

    def flush(self) -> None:
        """Take an Escape, or Alt and a letter, as a key: nothing has followed it for a while."""
        if len(self._held) <= 2:
            held, self._held = self._held, ""
            super().feed(held)
        super().flush()


def known(sequence: str) -> list[str]:
    """Return sequences that prompt_toolkit knows and that mean the same; none if the sequence is no key."""
    if _CURSOR_PLACE.fullmatch(sequence) or (sequence in ANSI_SEQUENCES and not sequence.startswith(_OTHER_KEY)):
        return [sequence]
    if sequence.startswith("\x1bO"):
        text = _KEYPAD.get(sequence[-1])
        return [] if text is None else [text]
    control = _CSI.fullmatch(sequence)
    if control is None:
        return []
    fields = [field.split(":") for field in control[1].split(";")]
    final = control[2]
    if final == "~" and fields[0] == ["27"] and len(fields) == 3:
        fields, final = [fields[2], fields[1]], "u"
    modifiers, released = _modifiers(fields[1] if len(fields) > 1 else [])
    if released:
        return []
    if final == "u":
        return _key(int(fields[0][0] or 0), modifiers)
    plain = f"{fields[0][0]}{final}" if final == "~" else final
    modified = f"{fields[0][0] or 1};{1 + modifiers}{final}"
    shorter = f"\x1b[{modified if modifiers else plain}"
    return [shorter] if shorter in ANSI_SEQUENCES else []


def _modifiers(field: list[str]) -> tuple[int, bool]:
    """Return Shift, Alt and Ctrl as bits, and whether the key was released; other modifiers are left out."""
    number = int(field[0]) if field and field[0] else 1
    return (number - 1) & (_SHIFT | _ALT | _CTRL), field[1:2] == [_RELEASED]


def _key(code: int, modifiers: int) -> list[str]:
    """Return a key that is given by its character."""
    if code in _KITTY:
        return [_KITTY[code]]
    if not 0 < code < 0x110000 or 0xD800 <= code < 0xF900:  # surrogates, and keys without a character
        return []
    text = chr(code)
    if text == _ENTER:
        return [_NEW_LINE if modifiers else _ENTER]
    if text == "\t" and modifiers & _SHIFT:
        return ["\x1b[Z"]
    if modifiers & _SHIFT:
        text = text.upper()
    if modifiers & _CTRL and "@" <= text.upper() <= "_":
        text = chr(ord(text.upper()) & 0x1F)
    elif modifiers & _CTRL and text not in " \x7f\x08":
        return []
    return [*(["\x1b"] if modifiers & _ALT else []), text]


def strict_keys(keyboard: Input) -> None:
    """Let an input ignore the escape sequences that it does not know."""
    parser = getattr(keyboard, "vt100_parser", None)  # the input of Windows has none
    if parser is not None:
        keyboard.vt100_parser = StrictParser(parser.feed_key_callback)  # type: ignore[attr-defined]


def early_keys(keyboard: Input) -> None:
    """Keep what was typed before the chat had the terminal, as keys for the first input line.

    The terminal has turned Enter into a newline then, which it must not be.
    """
    reader = getattr(keyboard, "stdin_reader", None)
    if reader is None or not os.isatty(keyboard.fileno()):
        return
    keys: list[KeyPress] = []
    parser = StrictParser(keys.append)
    while text := reader.read():
        parser.feed(text.replace("\n", "\r"))
    parser.flush()
    store_typeahead(keyboard, keys)


def plain_line(prompt: str) -> str:
    """Read a line on a dumb terminal, which edits its lines itself.

    Raises:
        EOFError: for Ctrl-D.
        KeyboardInterrupt: for Ctrl-C.
        Terminated: the terminal is gone.
    """
    sys.stdout.write(prompt)
    sys.stdout.flush()
    if isinstance(sys.stdin, io.TextIOWrapper) and sys.stdin.errors != "surrogateescape":
        sys.stdin.reconfigure(errors="surrogateescape")  # as at other input lines
    try:
        line = sys.stdin.readline()
    except OSError:
        line = ""
    if not line:
        if not sys.stdin.isatty():
            raise Terminated(HANG_UP)
        raise EOFError
    return line.rstrip("\r\n")
