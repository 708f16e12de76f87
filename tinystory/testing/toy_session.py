"""A session without weights, for tests: every rule of a real one, in microseconds."""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tinystory.decoding import Ids, Request, Session, Step
from tinystory.noise import Noise

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Call", "ToySession", "ToyVocabulary", "toy_request"]


class Call(NamedTuple):
    """One use of a session: the verb, how many rows it touched, how many tokens it had to compute in all."""

    verb: str
    rows: int
    tokens: int


class ToySession(Session):
    """A session whose next-token logits are a fixed pseudo-random function of the row's last token ids.

    It keeps every rule of `Session` and raises ValueError where a decoder breaks one.

    Attributes:
        rows: the token ids each row holds now.
        calls: what was asked of it, to assert on cost.
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
        """Make an empty session; BOS is token 0 and EOS token 1, where the vocabulary is that large.

        Args:
            vocab_size: number of tokens.
            max_seq_len: tokens a row can hold.
            eos_logit: a fixed logit for EOS, −inf allowed; None leaves it to chance.
            seed: of the pseudo-random function, as it were the weights.
            memory: how many of the last ids the logits depend on.
            d_model: size of the hidden state.
            can_rewind: whether `rewind` is allowed.
            can_reorder: whether `reorder` is allowed.
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
        """What the session answers after these ids; (V,) float32. Not counted as a call."""
        import torch

        logits = 2.0 * self._noise("logits", token_ids).gumbel(np.arange(self.vocab_size))
        if self._eos_logit is not None:
            logits[list(self.eos_ids)] = self._eos_logit
        return torch.from_numpy(logits.astype(np.float32))

    def prefill(self, prompts: Sequence[Sequence[int]]) -> "Tensor":
        """Make the rows hold these prompts; (B, V)."""
        import torch

        if not prompts:
            raise ValueError("there is no prompt")
        held = self.rows
        self.rows = [[int(token_id) for token_id in prompt] for prompt in prompts]
        self._check_rows()
        self._has_hidden = True
        computed = sum(len(row) - max([_common(row[:-1], other) for other in held], default=0) for row in self.rows)
        self.calls.append(Call("prefill", len(self.rows), computed))
        return torch.stack([self.logits_after(row) for row in self.rows])

    def decode(self, token_ids: Ids) -> "Tensor":
        """Append (B,) ids, giving (B, V), or (B, T) ids, giving (B, T, V)."""
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
        """Row i becomes a copy of row rows[i]."""
        import torch

        rows = torch.as_tensor(rows)
        if not self.can_reorder:
            raise ValueError("this session cannot reorder")
        self.rows = [self.rows[index] for index in rows.tolist()]
        self.calls.append(Call("reorder", len(self.rows), 0))

    def rewind(self, n_tokens: Sequence[int]) -> None:
        """Forget the last n_tokens[i] tokens of row i."""
        if not self.can_rewind:
            raise ValueError("this session cannot rewind")
        for row, n in zip(self.rows, n_tokens, strict=True):
            if not 0 <= n <= len(row):
                raise ValueError(f"cannot rewind {n} tokens of a row of {len(row)}")
        self.rows = [row[: len(row) - n] for row, n in zip(self.rows, n_tokens, strict=True)]
        self._has_hidden = False
        self.calls.append(Call("rewind", len(self.rows), 0))

    def hidden(self) -> "Tensor":
        """A pseudo-random unit vector for each row, from the same ids as its logits; (B, d_model)."""
        import torch

        if not self._has_hidden:
            raise ValueError("no hidden state: nothing was decoded since the rewind")
        vectors = [self._noise("hidden", row).gumbel(np.arange(self._d_model)) for row in self.rows]
        return torch.from_numpy(np.stack([vector / np.linalg.norm(vector) for vector in vectors]).astype(np.float32))

    def open(self, model: str | None = None) -> "ToySession":
        """An empty session of the same function, or of another one for each model name."""
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
    """Tokens as text for a toy session: two without any, a space, marks, the letters, then words of their own."""

    def __init__(self, vocab_size: int = 32) -> None:
        """Name the tokens of a vocabulary of any size."""
        words = (f" w{i}" for i in range(32, vocab_size))
        self.pieces: tuple[str, ...] = ("", "", *" .,abcdefghijklmnopqrstuvwxyz\n", *words)[:vocab_size]

    def encode(self, text: str, *, bos: bool = True) -> list[int]:
        """One token a character, BOS first where asked; a character that no token has is left out."""
        ids = [self.pieces.index(character) for character in text if character in self.pieces]
        return [0, *ids] if bos else ids

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """The pieces, joined."""
        return "".join(self.pieces[i] for i in token_ids)


def toy_request(prompt: Sequence[int], max_new_tokens: int, vocab_size: int = 32, **others: Any) -> Request:
    """A story whose tokens are text, with somebody who always chooses the likeliest."""

    def choose(logits: "Tensor", step: Step) -> int:
        return int(logits.argmax())

    vocabulary = ToyVocabulary(vocab_size)
    return Request(tuple(prompt), max_new_tokens, 1, vocabulary=vocabulary, choose=choose, **others)


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common prefix."""
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
