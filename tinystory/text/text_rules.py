"""The decoder of a `tokenizer.json` as rules that take one token after the other.

The `tokenizers` library applies a decoder to a whole list of tokens. A rule here does the same to a stream: it returns
a text as soon as no later token can change it. Each rule copies the result of the library exactly, so that the texts of
a stream, joined, are the text of the whole list. The module knows no token ids.
"""

import codecs
import copy
import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tokenizers import Regex, decoders

from tinystory.text.library_calls import library_call

__all__ = ["TextStream", "bytes_of_byte_level_characters", "text_stream"]

Decode = Callable[[list[str]], str]

_BYTE_TOKEN = re.compile(r"<0x([0-9a-fA-F]{2}|\+[0-9a-fA-F])>")  # Rust reads "+A" as a hexadecimal number, too
_UNKNOWN = "\ufffd"
_SURROGATES = b"\xed"  # with a byte from 0xA0 on it is never valid, but Python waits for a third byte


class _Rule:
    """One rule: texts go in, final texts come out.

    A subclass changes its attributes only by assignment, so that `copy.copy` makes an independent rule.
    """

    def add(self, text: str) -> Iterable[str]:
        """Return the texts that this text makes final."""
        raise TypeError(f"{type(self).__name__} defines no add")

    def finish(self) -> Iterable[str]:
        """Return the texts that were held back."""
        return ()


class _EachToken(_Rule):
    """A rule that changes each token alone; the first token may have a rule of its own."""

    def __init__(self, first: Callable[[str], str], later: Callable[[str], str]) -> None:
        self._first = first
        self._later = later
        self._known: dict[str, tuple[str]] = {}  # shared by all copies
        self._begun = False

    def add(self, text: str) -> Iterable[str]:
        if not self._begun:
            self._begun = True
            return (self._first(text),)
        result = self._known.get(text)
        if result is None:
            result = self._known[text] = (self._later(text),)
        return result


class _LastToken(_Rule):
    """A rule that treats the last token differently (`BPEDecoder`), so that one token is held back."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._held: str | None = None

    def add(self, text: str) -> Iterable[str]:
        before, self._held = self._held, text
        return () if before is None else (self._decode([before, ""]),)

    def finish(self) -> Iterable[str]:
        return () if self._held is None else (self._decode([self._held]),)


class _NoRepeats(_Rule):
    """The rule `CTC`: a token that repeats the token before it is left out, and so is an empty result."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._before: str | None = None

    def add(self, text: str) -> Iterable[str]:
        if text == self._before:
            return ()
        self._before = text
        result = self._decode([text])
        return (result,) if result else ()


class _ByteRuns(_Rule):
    """The rule `ByteFallback`: a run of tokens such as `<0xE2>` becomes its text.

    If the bytes of a run are not valid UTF-8, each of them becomes U+FFFD. A run is therefore final when it ends,
    or when no later byte can make it valid.
    """

    def __init__(self) -> None:
        self._n_bytes = 0  # in the run that is held back
        self._text = ""  # the characters of this run
        self._tail = b""  # the bytes after these characters
        self._broken = False

    def add(self, text: str) -> Iterable[str]:
        match = _BYTE_TOKEN.fullmatch(text) if text.startswith("<0x") else None
        if match is None:
            if not self._n_bytes and not self._broken:
                return (text,)
            return (*self.finish(), text)
        if self._broken:
            return (_UNKNOWN,)
        self._n_bytes += 1
        raw = self._tail + bytes([int(match[1], 16)])
        try:
            characters, n_read = codecs.utf_8_decode(raw, "strict", False)
        except UnicodeDecodeError:
            return self._break()
        if raw[n_read : n_read + 1] == _SURROGATES and raw[n_read + 1 :] >= b"\xa0":
            return self._break()
        self._text += characters
        self._tail = raw[n_read:]
        return ()

    def _break(self) -> Iterable[str]:
        """Return the texts of a run that no later byte can make valid."""
        lost = (_UNKNOWN,) * self._n_bytes
        self._n_bytes, self._text, self._tail, self._broken = 0, "", b"", True
        return lost

    def finish(self) -> Iterable[str]:
        run: tuple[str, ...] = (_UNKNOWN,) * self._n_bytes if self._tail else (self._text,) * bool(self._n_bytes)
        self._n_bytes, self._text, self._tail, self._broken = 0, "", b"", False
        return run


class _ByteLevelText(_Rule):
    """The rule `ByteLevel`: the characters of GPT-2's vocabulary become bytes, and these become one text."""

    def __init__(self) -> None:
        self._byte_of = bytes_of_byte_level_characters()
        self._tail = b""  # an unfinished character

    def add(self, text: str) -> Iterable[str]:
        try:
            raw = b"".join([self._byte_of[character] for character in text])
        except KeyError:
            raw = text.encode()
        return (self._read(self._tail + raw, final=False),)

    def finish(self) -> Iterable[str]:
        return (self._read(self._tail, final=True),)

    def _read(self, raw: bytes, *, final: bool) -> str:
        text, n_read = codecs.utf_8_decode(raw, "replace", final)
        self._tail = raw[n_read:]
        return text


class _Trim(_Rule):
    """The rule `Strip` on one text that comes in parts: cut a character from its start and its end."""

    def __init__(self, character: str, n_start: int, n_end: int) -> None:
        self._character = character
        self._n_start = n_start  # how many may still be cut
        self._n_end = n_end
        self._held = ""

    def add(self, text: str) -> Iterable[str]:
        if self._n_start and text:
            n_here = len(text) - len(text.lstrip(self._character))
            n_cut = min(n_here, self._n_start)
            self._n_start = self._n_start - n_cut if n_here == len(text) else 0
            text = text[n_cut:]
        if not self._n_end:
            return (text,)
        text = self._held + text
        n_held = min(len(text) - len(text.rstrip(self._character)), self._n_end)
        self._held = text[len(text) - n_held :]
        return (text[: len(text) - n_held],)

    def whole(self, text: str) -> str:
        """Return a whole text without these characters. The rule must be unused, and stays so."""
        return "".join(copy.copy(self).add(text))


class _Substitute(_Rule):
    """The rule `Replace` on one text that comes in parts. A possible start of the pattern is held back."""

    def __init__(self, pattern: str, content: str) -> None:
        self._pattern = pattern
        self._content = content
        self._held = ""

    def add(self, text: str) -> Iterable[str]:
        *parts, rest = (self._held + text).split(self._pattern)
        longest = min(len(rest), len(self._pattern) - 1)
        n_held = next((n for n in range(longest, 0, -1) if self._pattern.startswith(rest[-n:])), 0)
        self._held = rest[len(rest) - n_held :]
        return (self._content.join([*parts, rest[: len(rest) - n_held]]),)

    def finish(self) -> Iterable[str]:
        return (self._held,)


class _WholeText(_Rule):
    """A decoder whose text may change until the end, or that we do not know: all of it is held back."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._tokens: tuple[Any, ...] = ()  # a chain of pairs, so that a copy costs nothing

    def add(self, text: str) -> Iterable[str]:
        self._tokens = (self._tokens, text)
        return ()

    def finish(self) -> Iterable[str]:
        tokens, chain = [], self._tokens
        while chain:
            chain, token = chain
            tokens.append(token)
        return (self._decode(tokens[::-1]),)


class TextStream:
    """The text of tokens that arrive one by one.

    Attributes:
        library_agrees: the library gives the same text for all tokens at once, and it cannot fail.
    """

    def __init__(self, rules: Sequence[_Rule], *, library_agrees: bool) -> None:
        self._rules = rules
        self.library_agrees = library_agrees

    def copy(self) -> "TextStream":
        """Return an independent stream in the same state."""
        return TextStream([copy.copy(rule) for rule in self._rules], library_agrees=self.library_agrees)

    def add(self, token: str) -> str:
        """Return the text that this token makes final.

        Raises:
            CheckpointError: the decoder fails.
        """
        texts: Iterable[str] = (token,)
        for rule in self._rules:
            texts = [result for text in texts for result in rule.add(text)]
        return "".join(texts)

    def finish(self) -> str:
        """Return the text that was held back. The stream ends here.

        Raises:
            CheckpointError: the decoder fails.
        """
        texts: list[str] = []
        for rule in self._rules:
            texts = [result for text in texts for result in rule.add(text)]
            texts.extend(rule.finish())
        return "".join(texts)


def text_stream(decoder: Any) -> TextStream:
    """Return a new stream that does what a decoder of the `tokenizers` library does; None joins tokens by spaces."""
    if decoder is None:
        return TextStream([_EachToken(str, " {}".format)], library_agrees=True)
    try:
        parts = _flat(json.loads(decoder.__getstate__()))
        rules, fused = [], False
        for part in parts:
            rules += _rule_of_one_text(part) if fused else _rule_of_tokens(part)
            fused = fused or part["type"] in ("Fuse", "ByteLevel")
    except Exception:  # a decoder that is written in Python, or a kind that is newer than this module
        return TextStream([_WholeText(_safe(decoder.decode))], library_agrees=False)
    # The library's Strip panics where it may cut more characters than a text has.
    can_panic = any(part["type"] == "Strip" and part["stop"] for part in parts)
    return TextStream(rules, library_agrees=not can_panic)


def _flat(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the parts of a decoder, without the sequences around them."""
    if decoder["type"] != "Sequence":
        return [decoder]
    return [part for inner in decoder["decoders"] for part in _flat(inner)]


def _rule_of_tokens(part: dict[str, Any]) -> list[_Rule]:
    """Return the rules of one part of a decoder that receives tokens."""
    match part:
        case {"type": "Fuse"}:
            return []
        case {"type": "ByteFallback"}:
            return [_ByteRuns()]
        case {"type": "ByteLevel"}:
            return [_ByteLevelText()]
        case {"type": "Replace", "pattern": pattern, "content": content}:
            sought = Regex(pattern["Regex"]) if "Regex" in pattern else pattern["String"]
            return [_each_token(decoders.Replace(sought, content).decode)]
        case {"type": "Metaspace", "replacement": replacement, "prepend_scheme": scheme}:
            return [_each_token(decoders.Metaspace(replacement, scheme).decode)]
        case {"type": "WordPiece", "prefix": prefix, "cleanup": cleanup}:
            return [_each_token(decoders.WordPiece(prefix, cleanup).decode)]
        case {"type": "Strip", "content": character, "start": n_start, "stop": n_end}:
            trim = _Trim(character, n_start, n_end)
            return [_EachToken(trim.whole, trim.whole)]
        case {"type": "BPEDecoder", "suffix": suffix}:
            return [_LastToken(_safe(decoders.BPEDecoder(suffix).decode))]
        case {"type": "CTC", "pad_token": pad, "word_delimiter_token": delimiter, "cleanup": cleanup}:
            return [_NoRepeats(_safe(decoders.CTC(pad, delimiter, cleanup).decode))]
    raise ValueError(f"no rule for {part}")


def _rule_of_one_text(part: dict[str, Any]) -> list[_Rule]:
    """Return the rules of one part of a decoder that receives a single text, because a part before it joined all."""
    match part:
        case {"type": "Fuse"}:
            return []
        case {"type": "Strip", "content": character, "start": n_start, "stop": n_end}:
            return [_Trim(character, n_start, n_end)]
        case {"type": "Replace", "pattern": {"String": pattern}, "content": content} if pattern:
            return [_Substitute(pattern, content)]
    raise ValueError(f"no rule for {part} after all tokens were joined")


def _each_token(decode: Decode) -> _Rule:
    """Return the rule of a decoder of the library that changes each token alone."""
    decode = _safe(decode)
    n_before = len(decode([""]))
    return _EachToken(lambda token: decode([token]), lambda token: decode(["", token])[n_before:])


def _safe(decode: Decode) -> Decode:
    """Return a function of the library that raises `CheckpointError` if it fails."""

    def safe(tokens: list[str]) -> str:
        with library_call("the decoder in tokenizer.json cannot turn these tokens into text"):
            return decode(tokens)

    return safe


def bytes_of_byte_level_characters() -> dict[str, bytes]:
    """Return the byte for each printable character that replaces it in GPT-2's vocabulary.

    This is the reverse of `bytes_to_unicode` (Radford et al. 2019).
    """
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    table = {chr(byte): bytes([byte]) for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    table.update((chr(256 + n), bytes([byte])) for n, byte in enumerate(others))
    return table
