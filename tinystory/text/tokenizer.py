"""Text <-> token ids, and text that appears token by token without splitting a UTF-8 character.

Stands on the `tokenizers` library alone; transformers is not needed to write a story.
"""

import codecs
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer as FastTokenizer
from tokenizers.decoders import ByteLevel, DecodeStream

from tinystory.errors import CheckpointError

__all__ = ["END_OF_TEXT", "Detokenizer", "Tokenizer"]

END_OF_TEXT = "<|endoftext|>"
"""The token that begins and ends a story in our own vocabularies, and the separator in story files."""


class Tokenizer:
    """A vocabulary with its BOS and EOS; immutable."""

    def __init__(self, fast: FastTokenizer, bos_id: int | None, eos_ids: frozenset[int]) -> None:
        fast.encode_special_tokens = True  # "<|endoftext|>" typed into a prompt is text, not the end of a story
        fast.no_truncation()  # a limit for another program's batches would silently shorten stories
        fast.no_padding()
        self.fast = fast
        self.bos_id = bos_id
        self.eos_ids = eos_ids

    @classmethod
    def from_file(cls, path: Path, bos_id: int | None = None, eos_ids: Iterable[int] = ()) -> "Tokenizer":
        """Read a `tokenizer.json`.

        Without ids given, `<|endoftext|>` is both BOS and EOS where the vocabulary has it.

        Raises:
            CheckpointError: the file is missing or not a tokenizer.
        """
        try:
            fast = FastTokenizer.from_str(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise CheckpointError(f"{path}: {error.strerror}; a checkpoint needs a tokenizer.json") from error
        except Exception as error:  # the library raises bare Exception for any malformed content
            raise CheckpointError(f"{path} is not a tokenizer: {error}") from error
        eos_ids = frozenset(eos_ids)
        end = fast.token_to_id(END_OF_TEXT)
        if bos_id is None and not eos_ids and end is not None:
            return cls(fast, end, frozenset({end}))
        return cls(fast, bos_id, eos_ids)

    @classmethod
    def from_bpe_files(cls, directory: Path) -> "Tokenizer":
        """Build GPT-2's byte-level BPE from a folder with `vocab.json` and `merges.txt`."""
        from tokenizers import decoders, models, pre_tokenizers, processors

        try:
            model = models.BPE.from_file(str(directory / "vocab.json"), str(directory / "merges.txt"))
        except Exception as error:
            raise CheckpointError(f"{directory} has no readable vocab.json and merges.txt: {error}") from error
        fast = FastTokenizer(model)
        fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        fast.decoder = decoders.ByteLevel()
        fast.add_special_tokens([END_OF_TEXT])
        end = fast.token_to_id(END_OF_TEXT)
        assert end is not None
        fast.post_processor = processors.TemplateProcessing(
            single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, end)]
        )
        return cls(fast, end, frozenset({end}))

    @property
    def vocab_size(self) -> int:
        """Number of tokens, special ones included."""
        return self.fast.get_vocab_size(with_added_tokens=True)

    def to_json(self) -> str:
        """The content of `tokenizer.json`."""
        return self.fast.to_str(pretty=False)

    def encode(self, text: str, *, bos: bool = True) -> list[int]:
        """Token ids of a text, with BOS first where asked and the vocabulary has one."""
        ids = self.fast.encode(text, add_special_tokens=False).ids
        return [self.bos_id, *ids] if bos and self.bos_id is not None else ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of many texts on all cores, without BOS."""
        return [encoding.ids for encoding in self.fast.encode_batch_fast(list(texts), add_special_tokens=False)]

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """The text of a sequence; special tokens vanish, broken UTF-8 becomes U+FFFD."""
        if self.token_bytes is None:
            return str(self.fast.decode(list(token_ids), skip_special_tokens=True))
        return b"".join(self.token_bytes.get(i, b"") for i in token_ids).decode("utf-8", errors="replace")

    def token_text(self, token_id: int) -> str:
        """One token for the eye: its own text, `<0xE2>`-like for a part of a character, or its special name."""
        if self.token_bytes is None or token_id in self._special_ids:
            return self.fast.id_to_token(token_id) or f"<{token_id}>"
        raw = self.token_bytes.get(token_id, b"")
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return "".join(f"<0x{byte:02X}>" for byte in raw)

    @cached_property
    def pieces(self) -> tuple[str, ...]:
        """What each token adds to a text that has begun, by id: "" for a special one, U+FFFD for half a character."""
        if self.token_bytes is not None:
            table = (self.token_bytes.get(i, b"") for i in range(self.vocab_size))
            return tuple(raw.decode("utf-8", errors="replace") for raw in table)
        before = self.fast.encode("a", add_special_tokens=False).ids
        n_before = len(self.detokenize(before))
        return tuple(self.detokenize([*before, i])[n_before:] for i in range(self.vocab_size))

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        return frozenset(i for i, token in self.fast.get_added_tokens_decoder().items() if token.special)

    @cached_property
    def token_bytes(self) -> dict[int, bytes] | None:
        """Bytes of each ordinary token in a byte-level vocabulary; None for any other kind."""
        if not isinstance(self.fast.decoder, ByteLevel):
            return None
        byte_of = _bytes_of_byte_level_characters()
        table = {
            i: b"".join(byte_of.get(character, character.encode()) for character in token)
            for token, i in self.fast.get_vocab(with_added_tokens=False).items()
        }
        for i, added in self.fast.get_added_tokens_decoder().items():
            table[i] = b"" if added.special else added.content.encode()
        return table


class Detokenizer:
    """Text as tokens arrive: the pieces, `finish` included, concatenate to `Tokenizer.detokenize` of all ids.

    With `before`, ids that stand before the first one, they are the rest of that text after the text of those.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self.token_bytes = tokenizer.token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stream = DecodeStream(skip_special_tokens=True)
        self._token_ids: list[int] = []
        self._n_emitted = 0
        for token_id in before:
            self.add(token_id)

    def add(self, token_id: int) -> str:
        """The text that has become certain with this token; empty inside a multi-byte character."""
        if self.token_bytes is not None:
            return self._utf8.decode(self.token_bytes.get(token_id, b""))
        self._token_ids.append(token_id)
        piece = self._stream.step(self._tokenizer.fast, token_id) or ""
        self._n_emitted += len(piece)
        return piece

    def peek(self, token_ids: Sequence[int]) -> str:
        """What would become certain with these tokens; they are not added."""
        if self.token_bytes is None:
            return self._tokenizer.detokenize([*self._token_ids, *token_ids])[self._n_emitted :]
        before = self._utf8.getstate()
        text = self._utf8.decode(b"".join(self.token_bytes.get(token_id, b"") for token_id in token_ids))
        self._utf8.setstate(before)
        return text

    def finish(self) -> str:
        """What is left: an unfinished character as U+FFFD."""
        if self.token_bytes is not None:
            return self._utf8.decode(b"", final=True)
        return self._tokenizer.detokenize(self._token_ids)[self._n_emitted :]


def _bytes_of_byte_level_characters() -> dict[str, bytes]:
    """GPT-2's printable stand-in for each byte, reversed (Radford et al. 2019, `bytes_to_unicode`)."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    table = {chr(byte): bytes([byte]) for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    table.update((chr(256 + n), bytes([byte])) for n, byte in enumerate(others))
    return table
