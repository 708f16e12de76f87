"""A session without weights, for tests. It keeps every rule of a real session and takes microseconds."""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tinystory.decoding import Ids, Request, Session, Step, common_prefix
from tinystory.noise import Noise

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Call", "ToySession", "ToyVocabulary", "toy_request"]


class Call(NamedTuple):
    """One call of a session: the verb, the number of rows, and the number of tokens that it computed in all."""

    verb: str
    rows: int
    tokens: int


class ToySession(Session):
    """A session whose logits are a fixed pseudo-random function of the last token ids of a row.

    It keeps every rule of `Session` and raises ValueError if a decoder breaks one.

    Attributes:
        rows: the token ids that each row holds now.
        calls: all calls so far, for assertions about the cost.
    """

    def __init__(
        self,
        *,
        vocab_size: int = 32,
        max_seq_len: int = 64,
        eos_logit: float | None = None,
        seed: int = 0,
        memory: int = 3,
        d_model: int = 8,
        can_rewind: bool = True,
        can_reorder: bool = True,
    ) -> None:
        """Make an empty session. BOS is token 0, and EOS is token 1 if there is more than one token.

        Args:
            vocab_size: the number of tokens.
            max_seq_len: the most tokens that a row can hold.
            eos_logit: a fixed logit for EOS, which may be −inf; None makes it pseudo-random, too.
            seed: the seed of the pseudo-random function. It stands for the weights.
            memory: the number of last ids on which the logits depend.
            d_model: the size of the hidden state.
            can_rewind: True if `rewind` is allowed.
            can_reorder: True if `reorder` is allowed.
        """
        self.vocab_size = vocab_size
        self.max_seq_len = max_seq_len
        self.bos_id = 0
        self.eos_ids = frozenset({1} if vocab_size > 1 else ())
        self.can_rewind = can_rewind
        self.can_reorder = can_reorder
        self.rows: list[list[int]] = []
        self.calls: list[Call] = []
        self._has_hidden = False
        self._eos_logit = eos_logit
        self._seed = seed
        self._memory = memory
        self._d_model = d_model

    def logits_after(self, token_ids: Sequence[int]) -> "Tensor":
        """Return the (V,) float32 logits after these ids. This does not count as a call."""
        import torch

        logits = 2.0 * self._noise("logits", token_ids).gumbel(np.arange(self.vocab_size))
        if self._eos_logit is not None:
            logits[list(self.eos_ids)] = self._eos_logit
        return torch.from_numpy(logits.astype(np.float32))

    def prefill(self, prompts: Sequence[Sequence[int]]) -> "Tensor":
        """Replace the rows by these prompts and return (B, V) logits."""
        import torch

        if not prompts:
            raise ValueError("there is no prompt")
        old_rows = self.rows
        self.rows = [[int(token_id) for token_id in prompt] for prompt in prompts]
        self._check_rows()
        self._has_hidden = True
        computed = sum(
            len(row) - max([common_prefix(row[:-1], old) for old in old_rows], default=0) for row in self.rows
        )
        self.calls.append(Call("prefill", len(self.rows), computed))
        return torch.stack([self.logits_after(row) for row in self.rows])

    def decode(self, token_ids: Ids) -> "Tensor":
        """Append ids to the rows. Return (B, V) logits for (B,) ids, and (B, T, V) logits for (B, T) ids."""
        import torch

        token_ids = torch.as_tensor(token_ids)
        if token_ids.ndim not in (1, 2) or len(token_ids) != len(self.rows):
            raise ValueError(f"decode got ids of shape {tuple(token_ids.shape)} for {len(self.rows)} rows")
        self._has_hidden = True
        self.calls.append(Call("decode", len(self.rows), token_ids.numel()))
        columns = []
        for column in (token_ids[:, None] if token_ids.ndim == 1 else token_ids).T.tolist():
            self.rows = [[*row, token_id] for row, token_id in zip(self.rows, column, strict=True)]
            self._check_rows()
            columns.append(torch.stack([self.logits_after(row) for row in self.rows]))
        return columns[0] if token_ids.ndim == 1 else torch.stack(columns, dim=1)

    def reorder(self, rows: Ids) -> None:
        """Make row i a copy of row rows[i]."""
        import torch

        rows = torch.as_tensor(rows)
        if not self.can_reorder:
            raise ValueError("this session cannot reorder")
        self.rows = [self.rows[index] for index in rows.tolist()]
        self.calls.append(Call("reorder", len(self.rows), 0))

    def rewind(self, n_tokens: Sequence[int]) -> None:
        """Remove the last n_tokens[i] tokens of row i."""
        if not self.can_rewind:
            raise ValueError("this session cannot rewind")
        for row, n in zip(self.rows, n_tokens, strict=True):
            if not 0 <= n <= len(row):
                raise ValueError(f"cannot rewind {n} tokens of a row of {len(row)}")
        self.rows = [row[: len(row) - n] for row, n in zip(self.rows, n_tokens, strict=True)]
        self._has_hidden = False
        self.calls.append(Call("rewind", len(self.rows), 0))

    def hidden(self) -> "Tensor":
        """Return a pseudo-random unit vector for each row, (B, C), from the same ids as its logits."""
        import torch

        if not self._has_hidden:
            raise ValueError("no hidden state: nothing was decoded since the rewind")
        vectors = [self._noise("hidden", row).gumbel(np.arange(self._d_model)) for row in self.rows]
        return torch.from_numpy(np.stack([vector / np.linalg.norm(vector) for vector in vectors]).astype(np.float32))

    def open(self, model: str | None = None) -> "ToySession":
        """Open an empty session with the same function, or with another function for each model name."""
        return ToySession(
            vocab_size=self.vocab_size,
            max_seq_len=self.max_seq_len,
            eos_logit=self._eos_logit,
            seed=self._seed if model is None else _digest(f"{self._seed}/{model}"),
            memory=self._memory,
            d_model=self._d_model,
            can_rewind=self.can_rewind,
            can_reorder=self.can_reorder,
        )

    def _noise(self, stream: str, token_ids: Sequence[int]) -> Noise:
        return Noise(self._seed, stream, 0, _digest(repr([int(i) for i in token_ids[-self._memory :]])))

    def _check_rows(self) -> None:
        for row in self.rows:
            if not 1 <= len(row) <= self.max_seq_len:
                raise ValueError(f"a row has {len(row)} tokens; it must have 1 to {self.max_seq_len}")
            if not all(0 <= token_id < self.vocab_size for token_id in row):
                raise ValueError(f"a row has a token outside the vocabulary of {self.vocab_size}: {row}")


class ToyVocabulary:
    """The tokens of a toy session as text: BOS and EOS without text, a space, marks, letters, then whole words."""

    def __init__(self, vocab_size: int = 32) -> None:
        """Give a text to each token of a vocabulary of any size."""
        words = (f" w{i}" for i in range(32, vocab_size))
        self.pieces: tuple[str, ...] = ("", "", *" .,abcdefghijklmnopqrstuvwxyz\n", *words)[:vocab_size]

    def encode(self, text: str, *, bos: bool = True) -> list[int]:
        """Return one token id for each character, with BOS first if `bos`. Characters without a token are left out."""
        ids = [self.pieces.index(character) for character in text if character in self.pieces]
        return [0, *ids] if bos else ids

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids."""
        return "".join(self.pieces[i] for i in token_ids)


def toy_request(prompt: Sequence[int], max_new_tokens: int, vocab_size: int = 32, **others: Any) -> Request:
    """Return a request whose tokens have text, with a person who always picks the likeliest token."""

    def choose(logits: "Tensor", step: Step) -> int:
        return int(logits.argmax())

    vocabulary = ToyVocabulary(vocab_size)
    return Request(tuple(prompt), max_new_tokens, 1, vocabulary=vocabulary, choose=choose, **others)


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
