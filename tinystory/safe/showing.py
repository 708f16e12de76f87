"""Text from a model or a file, made safe to show: nothing in it can steer the terminal."""

import unicodedata

__all__ = ["visible"]

_JOINERS = "\u200c\u200d"
_HARMLESS = "\n\t" + _JOINERS
_HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})


def visible(text: str) -> str:
    r"""The same text with control and invisible formatting characters shown as what they are.

    C0 controls become their Unicode pictures (ESC is ␛), anything else that moves the cursor, turns the writing
    direction, hides or is no character at all (U+FFFE, which no XML may have) becomes its code point. Newline, tab
    and the joiners that scripts and emoji need stay.

    >>> visible("a\x1b[2Jb")
    'a␛[2Jb'
    >>> visible("\u202egnp.exe")
    '<U+202E>gnp.exe'
    """
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(_shown(character) for character in text)


def _shown(character: str) -> str:
    code = ord(character)
    is_none = code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF
    if character in _HARMLESS or not (is_none or unicodedata.category(character) in _HIDDEN_CATEGORIES):
        return character
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"<U+{code:04X}>"
