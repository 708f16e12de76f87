"""Find what stands between the stories of a text file, and split the file there.

A file of stories has `<|endoftext|>` between them. A file without it may have another mark or blank lines; what was
taken instead is reported in a note. Knows bytes of files, and not what a story is.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tinystory.errors import UsageError
from tinystory.safe.reading import open_regular
from tinystory.safe.showing import visible
from tinystory.text.tokenizer import END_OF_TEXT

__all__ = ["SEPARATOR", "Separator", "find_separator", "split_stories"]

SEPARATOR = END_OF_TEXT.encode()
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BLOCK_BYTES = 2**20
_MAX_RECORD_BYTES = 2**28
"""A text that is longer, without a separator or a line end, is no story; this also limits the memory."""

_OTHER_MARKS = re.compile(
    rb"<\|?(?:end[_ ]?of[_ ]?text|endofstory|end|eos|eot_id|im_end)\|?>|</s>|\[EOS\]", re.IGNORECASE
)
_LINE_OF_MARKS = re.compile(r"[^\w\s.,;:!?'\"](?:[ \t]*[^\w\s.,;:!?'\"]){2,}")
_BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")
_BLANK_LINE_PAIRS = re.compile(r"\n(?:[ \t]*\n){2,}")
_SENTENCE_END = (".", "!", "?", '"', "'", "”", "’", "…", ")", "»", "。")
_FEWEST_PARTS = 5


@dataclass(frozen=True)
class Separator:
    """What stands between stories.

    Attributes:
        mark: the text between them; empty if white space is.
        any_case: whether capital and small letters are the same in the mark.
        blank_lines: without a mark, how many blank lines are between stories; 0 takes each line as a story.
        note: what a user should know about this choice; empty for the usual mark.
    """

    mark: bytes = SEPARATOR
    any_case: bool = False
    blank_lines: int = 0
    note: str = ""


def find_separator(path: Path, wanted: str | None = None) -> Separator:
    r"""Return what stands between the stories of a text file.

    Args:
        path: a file that can be read.
        wanted: the text that a user has given; `\n` and `\t` in it are a newline and a tab. White space with k newlines
            means k - 1 blank lines.

    Raises:
        UsageError: the file does not have the wanted text.
        OSError: the file cannot be read.
    """
    if wanted is not None:
        return _wanted_separator(path, wanted)
    with open_regular(path, raises=UsageError) as file:
        sample = file.read(_BLOCK_BYTES)
        is_all = not file.read(1)
    if SEPARATOR in sample or (not is_all and _contains(path, SEPARATOR)):
        return Separator()
    if mark := _OTHER_MARKS.search(sample):
        note = f"{path} has no {END_OF_TEXT}, so its stories were taken from between {mark[0].decode()}"
        return Separator(mark[0], any_case=True, note=note)
    text = sample.decode(errors="replace").replace("\r\n", "\n")
    if not is_all:
        text = text[: text.rfind("\n\n") + 1]
    if n := _blank_lines_between_stories(text):
        between = "blank lines" if n == 1 else f"{n} or more blank lines"
        note = f"{path} has no {END_OF_TEXT}, so its stories were taken from between {between}"
        return Separator(b"", blank_lines=n, note=f"{note}; --separator '{END_OF_TEXT}' keeps them together")
    return Separator(note=_note_of_one_story(path, text, is_all))


def _wanted_separator(path: Path, wanted: str) -> Separator:
    text = wanted.replace("\\n", "\n").replace("\\t", "\t")
    if not text:
        raise UsageError("--separator is empty; give the text between the stories, such as '---' or '\\n\\n'")
    if not text.strip():
        if "\n" not in text:
            raise UsageError("--separator is white space without a newline; give a text, or '\\n\\n' for blank lines")
        return Separator(b"", blank_lines=text.count("\n") - 1)
    mark = text.encode(errors="surrogateescape")
    if mark != SEPARATOR and not _contains(path, mark):
        raise UsageError(f"{path} has no {visible(wanted)!r} between its stories; give another --separator")
    return Separator(mark)


def _contains(path: Path, mark: bytes) -> bool:
    with open_regular(path, raises=UsageError) as file:
        tail = b""
        while block := file.read(_BLOCK_BYTES):
            if mark in tail + block:
                return True
            tail = block[-len(mark) :]
    return False


def _blank_lines_between_stories(text: str) -> int:
    """Return how many blank lines plainly stand between stories; 0 if that is not plain.

    It is plain if there are five parts or more, and nearly all of them are whole sentences.
    """
    pairs = len(_BLANK_LINE_PAIRS.findall(text.strip()))
    n = 2 if pairs + 1 >= _FEWEST_PARTS and len(_BLANK_LINES.findall(text.strip())) > pairs else 1
    parts = [part.strip() for part in (_BLANK_LINE_PAIRS if n == 2 else _BLANK_LINES).split(text.strip())]
    whole = [part for part in parts if part and not part[0].islower() and part.endswith(_SENTENCE_END)]
    return n if len(parts) >= _FEWEST_PARTS and len(whole) >= 0.8 * len(parts) else 0


def _note_of_one_story(path: Path, text: str, is_all: bool) -> str:
    """Return what a user should know about a file that is taken as one story; empty for a file of one line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) < 2:
        return ""
    marks = Counter(line for line in lines if _LINE_OF_MARKS.fullmatch(line))
    more = f", '{visible(marks.most_common(1)[0][0])}' at lines of these marks" if marks else ""
    size = f"{len(lines):,} lines" if is_all else "many lines"
    return (
        f"{path} has no {END_OF_TEXT}, so it was taken as one story of {size}; "
        rf"--separator '\n' takes each line as a story, '\n\n' splits at blank lines{more}"
    )


def split_stories(file: IO[bytes], path: Path, separator: Separator | None = None) -> Iterator[bytes]:
    """Yield each text between the separators of a file, unchanged; only an empty last one is left out.

    Every byte is looked at once, even in a long story.

    Raises:
        UsageError: a text is too long to be a story.
    """
    separator = separator or Separator()
    file.seek(len(_BYTE_ORDER_MARK) if file.read(3) == _BYTE_ORDER_MARK else 0)
    return _between_marks(file, path, separator) if separator.mark else _between_blank_lines(file, path, separator)


def _between_marks(file: IO[bytes], path: Path, separator: Separator) -> Iterator[bytes]:
    pattern = re.compile(re.escape(separator.mark), re.IGNORECASE)
    begun: list[bytes] = []
    n_begun = 0
    tail = b""  # the end of a block may be the beginning of a separator
    n_kept = len(separator.mark) - 1
    while block := file.read(_BLOCK_BYTES):
        text = tail + block
        *ended, rest = pattern.split(text) if separator.any_case else text.split(separator.mark)
        for end in ended:
            yield b"".join((*begun, end))
            begun, n_begun = [], 0
        tail = rest[len(rest) - min(n_kept, len(rest)) :]
        begun.append(rest[: len(rest) - len(tail)])
        n_begun += len(begun[-1])
        _check_length(n_begun, path, visible(separator.mark.decode(errors="replace")))
    last = b"".join((*begun, tail))
    if last.strip():
        yield last


def _between_blank_lines(file: IO[bytes], path: Path, separator: Separator) -> Iterator[bytes]:
    begun: list[bytes] = []
    n_begun = n_blank = 0
    while line := file.readline(_BLOCK_BYTES):
        n_blank = n_blank + 1 if line.isspace() else 0
        if line.isspace() and n_blank >= separator.blank_lines > 0:
            if begun:
                yield b"".join(begun)
            begun, n_begun = [], 0
        elif not line.isspace() or begun:
            begun.append(line)
            n_begun += len(line)
        _check_length(n_begun, path, "a blank line" if separator.blank_lines else "the end of a line")
        if not separator.blank_lines and line.endswith(b"\n"):
            if begun:
                yield b"".join(begun)
            begun, n_begun = [], 0
    if begun:
        yield b"".join(begun)


def _check_length(n_bytes: int, path: Path, separator: str) -> None:
    if n_bytes > _MAX_RECORD_BYTES:
        raise UsageError(f"{path} has {n_bytes:,} bytes without {separator}; put it between the stories")
