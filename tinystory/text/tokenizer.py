"""Text to token ids and back, also token by token without splitting a UTF-8 character.

It needs the `tokenizers` library, but not transformers. It knows no model and no file except `tokenizer.json`.
"""

import codecs
import contextlib
import copy
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.decoders import ByteLevel
from tokenizers.models import BPE

from tinystory.errors import CheckpointError, UsageError
from tinystory.safe.reading import read_json_object, read_text
from tinystory.text.library_calls import library_call
from tinystory.text.text_rules import TextStream, bytes_of_byte_level_characters, text_stream
from tinystory.text.tokenizer_file import MAX_TOKENIZER_BYTES, read_tokenizer_json

__all__ = ["END_OF_TEXT", "Detokenizer", "Tokenizer", "byte_level_bpe"]

END_OF_TEXT = "<|endoftext|>"
"""The token that is both BOS and EOS in our own vocabularies, and the separator in files of stories."""

_BYTES_OF_UTF8 = frozenset({*range(0xC0), *range(0xC2, 0xF5)})

_CANNOT_ENCODE = "the tokenizer cannot turn this text into tokens"
_PROBES = ("Once upon a time", "", " é 中\n🙂\0", "a" * 40 + "!", " " * 40)
"""Texts for which some tokenizers of strangers panic: an unlimited search of a regular expression, for example."""


class Tokenizer:
    """A vocabulary with its BOS and EOS. It is immutable.

    Attributes:
        fast: the tokenizer of the `tokenizers` library.
        bos_id: the BOS token; None if the vocabulary has none.
        eos_ids: the tokens that end a story.
        prefix: the special tokens before a prompt: BOS, unless `around` says otherwise.
        suffix: the special tokens after a prompt: none, unless `around` says otherwise.
        n_rows: the number of ids that the model knows; None if the tokenizer stands alone. A tokenizer may have added
            tokens above them, which no text may contain. And it may lack some of them; their text is empty.
    """

    def __init__(
        self,
        fast: FastTokenizer,
        bos_id: int | None,
        eos_ids: frozenset[int],
        n_rows: int | None = None,
        around: tuple[tuple[int, ...], tuple[int, ...]] | None = None,
    ) -> None:
        fast.encode_special_tokens = True  # "<|endoftext|>" typed into a prompt is text, not the end of a story
        fast.no_truncation()  # a limit for the batches of another program would silently shorten stories
        fast.no_padding()
        if isinstance(fast.model, BPE):
            fast.model.dropout = None  # it would give one prompt other tokens each time
        self.fast = fast
        self.n_rows = n_rows
        self.bos_id = None if bos_id is not None and self._is_above(bos_id) else bos_id
        self.eos_ids = frozenset(i for i in eos_ids if not self._is_above(i))
        self.prefix, self.suffix = around or (() if self.bos_id is None else (self.bos_id,), ())

    @classmethod
    def from_file(
        cls, path: Path, bos_id: int | None = None, eos_ids: Iterable[int] = (), n_rows: int | None = None
    ) -> "Tokenizer":
        """Read a `tokenizer.json` for a model of `n_rows` tokens.

        If no ids are given and the vocabulary has `<|endoftext|>`, this token is both BOS and EOS.

        Raises:
            CheckpointError: the file is missing or is not a tokenizer.
        """
        content = read_tokenizer_json(path)
        with library_call(f"{path} is not a tokenizer"):
            fast = FastTokenizer.from_str(content)
            eos_ids = frozenset(eos_ids)
            end = fast.token_to_id(END_OF_TEXT)
            if bos_id is None and not eos_ids and end is not None:
                bos_id, eos_ids = end, frozenset({end})
            tokenizer = cls(fast, bos_id, eos_ids, n_rows)
            _probe(fast)
        return tokenizer

    @classmethod
    def from_bpe_files(cls, directory: Path, n_rows: int | None = None) -> "Tokenizer":
        """Build the byte-level BPE of GPT-2 from `vocab.json` and `merges.txt`; `<|endoftext|>` is both BOS and EOS.

        Raises:
            CheckpointError: one of the files is missing or cannot be read.
        """
        from tokenizers import processors

        fast = byte_level_bpe(directory)
        fast.add_special_tokens([END_OF_TEXT])
        end = fast.token_to_id(END_OF_TEXT)
        assert end is not None
        fast.post_processor = processors.TemplateProcessing(
            single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, end)]
        )
        return cls(fast, end, frozenset({end}), n_rows)

    @property
    def vocab_size(self) -> int:
        """The number of tokens, special ones included; for a model, the number of ids that it knows."""
        return self.n_rows or self.fast.get_vocab_size(with_added_tokens=True)

    @cached_property
    def unknown_id(self) -> int | None:
        """The token that stands for text that the vocabulary cannot spell, such as `<unk>`; None if it has none."""
        model = self._model_json
        if model.get("unk_token") is not None:
            return self.fast.token_to_id(str(model["unk_token"]))
        return model.get("unk_id")

    @cached_property
    def _spells_everything(self) -> bool:
        """True for a vocabulary that has a token for every byte of UTF-8."""
        if self.token_bytes is None:
            return bool(self._model_json.get("byte_fallback", False)) and self.unknown_id is None
        return {raw[0] for raw in self.token_bytes.values() if len(raw) == 1} >= _BYTES_OF_UTF8

    def n_unknown(self, stories: Iterable[Sequence[int] | NDArray[Any]]) -> int:
        """Return how many tokens of stories stand for text that the vocabulary cannot spell, at least.

        Such stories have no bits per byte: the model does not predict all of their bytes. A vocabulary that leaves out
        what it cannot spell counts as one such token.
        """
        if self._spells_everything:
            return 0
        if self.unknown_id is None:  # a BPE leaves out what it cannot spell; the other models fail
            return int(self._model_json.get("type") == "BPE")
        return sum(int(np.count_nonzero(np.asarray(story) == self.unknown_id)) for story in stories)

    @cached_property
    def _model_json(self) -> dict[str, Any]:
        model = json.loads(self.fast.to_str())["model"]
        model.pop("vocab", None)
        model.pop("merges", None)
        return dict(model)

    def to_json(self) -> str:
        """Return the content of `tokenizer.json`."""
        return self.fast.to_str(pretty=False)

    def encode(self, text: str, *, bos: bool = True) -> list[int]:
        """Return the token ids of a text. If `bos` is True, it gets BOS or the other special tokens of a prompt.

        Raises:
            UsageError: the text contains a token that the model does not know.
            CheckpointError: the tokenizer cannot encode this text.
        """
        with library_call(_CANNOT_ENCODE):
            ids = self.fast.encode(text, add_special_tokens=False).ids
        ids = self._known(ids)
        return self.as_prompt(ids) if bos else ids

    def as_prompt(self, token_ids: Sequence[int]) -> list[int]:
        """Return the ids of a text with the special tokens of a prompt; only BOS if there is no token at all."""
        prompt = [*self.prefix, *token_ids, *self.suffix]
        return prompt or ([] if self.bos_id is None else [self.bos_id])

    @property
    def before_story(self) -> tuple[int, ...]:
        """The ids that a whole story begins with: the special tokens before a prompt, or BOS if there are none."""
        return self.prefix or (() if self.bos_id is None else (self.bos_id,))

    def n_before_text(self, token_ids: Sequence[int]) -> int:
        """Return how many of the first ids of a story stand before its text: those of the prefix, or BOS alone."""
        n = len(self.prefix)
        if n and tuple(token_ids[:n]) == self.prefix:
            return n
        return int(len(token_ids) > 0 and token_ids[0] == self.bos_id)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of many texts without BOS. All cores are used.

        Raises:
            UsageError: a text contains a token that the model does not know.
            CheckpointError: the tokenizer cannot encode one of them.
        """
        with library_call(_CANNOT_ENCODE):
            encodings = self.fast.encode_batch_fast(list(texts), add_special_tokens=False)
        return [self._known(encoding.ids) for encoding in encodings]

    def _is_above(self, token_id: int) -> bool:
        return self.n_rows is not None and token_id >= self.n_rows

    @cached_property
    def _has_tokens_above(self) -> bool:
        return any(map(self._is_above, self.fast.get_added_tokens_decoder()))

    def _known(self, token_ids: list[int]) -> list[int]:
        """Return ids that the model knows; raise UsageError for one that it does not know."""
        if self._has_tokens_above and (above := next(filter(self._is_above, token_ids), None)) is not None:
            raise UsageError(
                f"the text has {self.fast.id_to_token(above)!r}, the token {above} of the tokenizer; this model knows "
                f"only tokens 0 to {self.vocab_size - 1}, so take it out of the text"
            )
        return token_ids

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids. Special tokens and unknown ids are left out; broken UTF-8 becomes U+FFFD.

        Raises:
            CheckpointError: the decoder in `tokenizer.json` fails.
        """
        if self.token_bytes is None:
            if self._text_stream.library_agrees:
                # It fails for an id below 0, which is no token.
                with contextlib.suppress(CheckpointError), library_call("the library cannot detokenize"):
                    return str(self.fast.decode(list(token_ids), skip_special_tokens=True))
            stream = self.text_stream()
            tokens = (self.visible_token(token_id) for token_id in token_ids)
            return "".join([stream.add(token) for token in tokens if token is not None]) + stream.finish()
        return b"".join(self.token_bytes.get(i, b"") for i in token_ids).decode("utf-8", errors="replace")

    def text_stream(self) -> TextStream:
        """Return a new stream from tokens to their text."""
        return self._text_stream.copy()

    def visible_token(self, token_id: int) -> str | None:
        """Return a token as the vocabulary spells it; None for a special token and an unknown id."""
        if token_id not in self._visible_tokens:
            try:
                token = self.fast.id_to_token(token_id)
            except OverflowError:
                token = None
            self._visible_tokens[token_id] = None if token in self._special_tokens else token
        return self._visible_tokens[token_id]

    def token_text(self, token_id: int) -> str:
        """Return one token as readers see it: its text, a form like `<0xE2>` for a part of a character, or its name."""
        if self.token_bytes is None or token_id in self._special_ids:
            return self.fast.id_to_token(token_id) or f"<{token_id}>"
        raw = self.token_bytes.get(token_id, b"")
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return "".join(f"<0x{byte:02X}>" for byte in raw)

    @cached_property
    def pieces(self) -> tuple[str, ...]:
        """The text that each token adds to a text that has begun, by id.

        It is "" for a special token, and U+FFFD for a part of a character.
        """
        if self.token_bytes is not None:
            table = (self.token_bytes.get(i, b"") for i in range(self.vocab_size))
            return tuple(raw.decode("utf-8", errors="replace") for raw in table)
        before = self.encode("a", bos=False)
        n_before = len(self.detokenize(before))
        return tuple(self.detokenize([*before, i])[n_before:] for i in range(self.vocab_size))

    @cached_property
    def _text_stream(self) -> TextStream:
        return text_stream(self.fast.decoder)

    @cached_property
    def _visible_tokens(self) -> dict[int, str | None]:
        return {}

    @cached_property
    def _special_tokens(self) -> frozenset[str]:
        return frozenset(token.content for token in self.fast.get_added_tokens_decoder().values() if token.special)

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        return frozenset(i for i, token in self.fast.get_added_tokens_decoder().items() if token.special)

    @cached_property
    def token_bytes(self) -> dict[int, bytes] | None:
        """The bytes of each token, by id, in a byte-level vocabulary; None in any other vocabulary."""
        if not isinstance(self.fast.decoder, ByteLevel):
            return None
        byte_of = bytes_of_byte_level_characters()
        table = {
            # A token with another character is its own text, as in the library.
            i: b"".join(map(byte_of.__getitem__, token)) if byte_of.keys() >= set(token) else token.encode()
            for token, i in self.fast.get_vocab(with_added_tokens=False).items()
        }
        for i, added in self.fast.get_added_tokens_decoder().items():
            table[i] = b"" if added.special else added.content.encode()
        return {i: raw for i, raw in table.items() if not self._is_above(i)}


def _probe(fast: FastTokenizer) -> None:
    """Encode a few texts, so that a file for which the library panics is refused when it is loaded."""
    for text in _PROBES:
        with contextlib.suppress(Exception):  # it may lack a character of the text; a panic is no Exception
            fast.encode(text, add_special_tokens=False)


def byte_level_bpe(directory: Path) -> FastTokenizer:
    """Build the byte-level BPE of GPT-2, without special tokens, from a folder with `vocab.json` and `merges.txt`.

    Raises:
        CheckpointError: one of the files is missing or cannot be read.
    """
    from tokenizers import decoders, models, pre_tokenizers

    def unreadable(problem: str) -> CheckpointError:
        return CheckpointError(f"{directory} has no readable vocab.json and merges.txt: {problem}")

    vocab = read_json_object(directory / "vocab.json", MAX_TOKENIZER_BYTES, raises=unreadable)
    merges = read_text(directory / "merges.txt", MAX_TOKENIZER_BYTES, raises=unreadable).split("\n")
    pairs: Any = [tuple(line.split(" ")) for line in merges if line and not line.startswith("#version")]
    with library_call(f"{directory} has no readable vocab.json and merges.txt"):
        model = models.BPE(vocab, pairs)
    fast = FastTokenizer(model)
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    return fast


class Detokenizer:
    """The text of tokens that arrive one by one.

    The parts that `add` and `finish` return are final. Together they are the text that `Tokenizer.detokenize` gives for
    all ids. Ids in `before` stand before the first token, and their text is left out.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self.token_bytes = tokenizer.token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stream = TextStream((), library_agrees=False) if self.token_bytes is not None else tokenizer.text_stream()
        self._text_to_leave_out = ""
        for token_id in before:
            self.add(token_id)
        if len(before) and self.token_bytes is None:
            self._text_to_leave_out = self._stream.copy().finish()

    def add(self, token_id: int) -> str:
        """Return the text that this token makes final. It is empty if a later token may still change the text."""
        if self.token_bytes is not None:
            return self._utf8.decode(self.token_bytes.get(token_id, b""))
        token = self._tokenizer.visible_token(token_id)
        return "" if token is None else self._without_text_before(self._stream.add(token))

    def peek(self, token_ids: Sequence[int]) -> str:
        """Return the text that these tokens would make final, without adding them."""
        if self.token_bytes is None:
            draft = copy.copy(self)
            draft._stream = self._stream.copy()
            return "".join([draft.add(token_id) for token_id in token_ids])
        before = self._utf8.getstate()
        text = self._utf8.decode(b"".join(self.token_bytes.get(token_id, b"") for token_id in token_ids))
        self._utf8.setstate(before)
        return text

    def finish(self) -> str:
        """Return the rest of the text: an unfinished character becomes U+FFFD. No token may follow.

        Raises:
            CheckpointError: the decoder in `tokenizer.json` fails.
        """
        if self.token_bytes is not None:
            return self._utf8.decode(b"", final=True)
        return self._without_text_before(self._stream.finish())

    def _without_text_before(self, text: str) -> str:
        """Return a text without the end of the text of `before`, which the stream had held back."""
        if not self._text_to_leave_out:
            return text
        pairs = enumerate(zip(text, self._text_to_leave_out, strict=False))
        n_shorter = min(len(text), len(self._text_to_leave_out))
        n_same = next((n for n, (new, old) in pairs if new != old), n_shorter)
        self._text_to_leave_out = self._text_to_leave_out[n_same:] if n_same == len(text) else ""
        return text[n_same:]
