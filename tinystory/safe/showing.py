"""Make text from a model or a file safe to show, so that it cannot control the terminal."""

import unicodedata

__all__ = ["shortened", "visible"]

_JOINERS = "\u200c\u200d"
_HARMLESS = "\n\t" + _JOINERS
_HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})


def visible(text: str) -> str:
    r"""Return a text in which control characters and invisible characters are replaced by visible ones.

    A C0 control becomes its Unicode picture, such as ␛ for ESC. Every other character that moves the cursor, changes
    the writing direction or is invisible becomes its code point. So does a code point that is no character, such as
    U+FFFE, which XML forbids. Newline, tab, and the joiners that scripts and emoji need stay.

    >>> visible("a\x1b[2Jb")
    'a␛[2Jb'
    >>> visible("\u202egnp.exe")
    '<U+202E>gnp.exe'
    """
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(_shown(character) for character in text)


def shortened(text: str, most: int = 1000) -> str:
    """Return a text with its middle left out if it has more than `most` characters.

    >>> shortened("abcdefghij", 8)
    'abc … ij'
    """
    if len(text) <= most:
        return text
    n_end = (most - 3) * 2 // 5
    return f"{text[: most - 3 - n_end]} … {text[len(text) - n_end :]}"


def _shown(character: str) -> str:
    code = ord(character)
    is_no_character = code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF
    if character in _HARMLESS or not (is_no_character or unicodedata.category(character) in _HIDDEN_CATEGORIES):
        return character
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"<U+{code:04X}>"
