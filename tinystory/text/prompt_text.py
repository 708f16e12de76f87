"""The text of a prompt: made from the bytes of a file or a pipe, and checked before it is tokenised.

It knows no file and no model.
"""

from tinystory.errors import UsageError
from tinystory.safe.reading import without_mark

__all__ = ["MAX_PROMPT_BYTES", "check_prompt", "prompt_text"]

MAX_PROMPT_BYTES = 2**20
"""The longest prompt in UTF-8 bytes. It has a quarter of a million tokens or more, which take a second to find."""


def prompt_text(raw: bytes, where: str, part: str = "the text") -> str:
    r"""Return bytes as text: without a byte order mark, and with \n at the end of every line.

    Args:
        raw: the bytes.
        where: the name of the place in error messages.
        part: what of that place these bytes are.

    Raises:
        UsageError: the bytes are not UTF-8, have a zero byte (as UTF-16 has), or are too long for a prompt.
    """
    if len(raw) > MAX_PROMPT_BYTES:
        raise _too_long(f"{part} of {where}" if part != "the text" else where, len(raw))
    try:
        text = without_mark(raw).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{where} is not UTF-8 text: {part} is broken") from error
    if "\0" in text:
        raise UsageError(f"{where} is not UTF-8 text: {part} has zero bytes")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def check_prompt(prompt: str, what: str = "the prompt") -> str:
    """Return a prompt, or a text that is tokenised like one; UsageError if it is longer than `MAX_PROMPT_BYTES`."""
    n_bytes = len(prompt) if len(prompt) > MAX_PROMPT_BYTES else len(prompt.encode("utf-8", errors="replace"))
    if n_bytes > MAX_PROMPT_BYTES:
        raise _too_long(what, n_bytes)
    return prompt


def _too_long(what: str, n_bytes: int) -> UsageError:
    return UsageError(
        f"{what} has {n_bytes:,} bytes or more, which is too long for a prompt: at most {MAX_PROMPT_BYTES:,}"
    )
