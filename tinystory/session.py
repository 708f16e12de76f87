"""Our model behind the four verbs of a session: a static KV cache, fused weights, rows of different lengths.

Shapes: B rows, T new positions, S cached positions, H query heads, K key/value heads, D d_head, C d_model, V
vocab_size. This is the cached form of `model.Transformer.forward`; a test holds the two equal.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinystory.decoding import Session
from tinystory.errors import UsageError
from tinystory.kv_cache import KVCache
from tinystory.model import Attention, FeedForward, Transformer, activation, rope_tables
from tinystory.numpy_step import MOST_TOKENS, NumpyLayer, NumpyStep, pays

__all__ = ["NativeSession", "check_prompts"]


class _Layer(NamedTuple):
    """One block's weights, q/k/v and gate/up each fused into one matrix."""

    attn_norm: nn.Module
    qkv: Tensor
    qkv_bias: Tensor | None
    o: nn.Linear
    ff_norm: nn.Module
    up: Tensor
    up_bias: Tensor | None
    down: nn.Linear


class NativeSession:
    """A `decoding.Session` over a `Transformer`.

    Constructing one fuses the model's weights in place: its separate matrices become views of the fused ones,
    so that nothing is held twice and the model stays usable. A second session of the model comes from `open`.
    """

    can_rewind = True
    can_reorder = True

    def __init__(
        self,
        model: Transformer,
        bos_id: int | None = None,
        eos_ids: frozenset[int] = frozenset(),
        opener: Callable[[str], Session] | None = None,
    ) -> None:
        self.model = model
        self.config = model.config
        self.vocab_size = model.config.vocab_size
        self.max_seq_len = model.config.max_seq_len
        self.bos_id = bos_id
        self.eos_ids = eos_ids
        self._opener = opener
        with torch.no_grad():
            self._layers = [_fused(block) for block in model.blocks]
        self._activation = activation(self.config)
        self._weight = model.embed.weight
        self._cache = KVCache(model.config, self._weight)
        self._rope: tuple[Tensor, Tensor] | None = None  # cos, and sin with its first half negated; (S, D)
        self._hidden: Tensor | None = None
        on_cpu = self._weight.device.type == "cpu" and self._weight.dtype in (torch.float32, torch.float64)
        self._uses_numpy = on_cpu and pays(self.config)
        self._step: tuple[int, NumpyStep] | None = None  # over the cache's memory as it was in this version

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Make the rows hold these prompts and give the next-token logits, (B, V) float32.

        What the rows already hold is reused: each prompt starts from the row with which it shares the longest
        prefix, and equal prompts are computed once.

        Raises:
            UsageError: a prompt is empty, longer than max_seq_len, or has an id outside the vocabulary.
        """
        check_prompts(prompts, self.max_seq_len, self.vocab_size)
        unique = list(dict.fromkeys(tuple(prompt) for prompt in prompts))
        kept = self._cache.adopt(unique)
        n_new = max(len(prompt) - n for prompt, n in zip(unique, kept, strict=True))
        # A short row is padded to n_new positions; they have to fit below max_seq_len too, so it keeps less.
        kept = [min(n, self.max_seq_len - n_new) for n in kept]
        self._cache.rows = [list(prompt[:n]) for prompt, n in zip(unique, kept, strict=True)]
        padded = [list(prompt[n : n + n_new]) for prompt, n in zip(unique, kept, strict=True)]
        last = torch.tensor([len(new) - 1 for new in padded], device=self._weight.device)
        for new in padded:
            new.extend([0] * (n_new - len(new)))
        hidden = self._forward(torch.tensor(padded, device=self._weight.device))
        self._hidden = hidden[torch.arange(len(unique), device=last.device), last]
        self._cache.rows = [list(prompt) for prompt in unique]
        if len(unique) < len(prompts):
            place = {prompt: index for index, prompt in enumerate(unique)}
            self.reorder(torch.tensor([place[tuple(prompt)] for prompt in prompts]))
        return self._logits(self._hidden)

    @torch.inference_mode()
    def decode(self, token_ids: Tensor) -> Tensor:
        """Append tokens to every row: (B,) ids give (B, V) float32 logits, (B, T) ids give (B, T, V).

        Raises:
            UsageError: a row would pass max_seq_len.
        """
        rows = self._cache.rows
        new = token_ids.view(len(rows), -1)
        if max(map(len, rows)) + new.shape[1] > self.max_seq_len:
            raise UsageError(f"the context is full: this model sees {self.max_seq_len} tokens")
        if self._uses_numpy and new.numel() == 1:
            return self._decode_one(int(new)).view(*token_ids.shape, -1)
        hidden = self._forward(new.to(self._weight.device))
        self._hidden = hidden[:, -1]
        for row, ids in zip(rows, new.tolist(), strict=True):
            row.extend(ids)
        return self._logits(hidden if token_ids.ndim == 2 else self._hidden)

    @torch.inference_mode()
    def reorder(self, rows: Tensor) -> None:
        """Row i becomes a copy of row rows[i]; (B',) with any B' ≥ 1."""
        self._cache.reorder(rows.tolist())
        if self._hidden is not None:
            self._hidden = self._hidden[rows.to(self._hidden.device)]

    def rewind(self, n_tokens: Sequence[int]) -> None:
        """Forget the last n_tokens[i] tokens of row i; stale cache entries are overwritten later.

        `hidden` has no value until the next decode.

        Raises:
            UsageError: a row is shorter than that.
        """
        for row, n in zip(self._cache.rows, n_tokens, strict=True):
            if not 0 <= n <= len(row):
                raise UsageError(f"cannot rewind {n} tokens of a row of {len(row)}")
            del row[len(row) - n :]
        self._hidden = None

    def hidden(self) -> Tensor:
        """The normed last hidden state of each row's last token; (B, C)."""
        if self._hidden is None:
            raise UsageError("no hidden state: nothing was decoded since the rewind")
        return self._hidden

    def open(self, model: str | None = None) -> Session:
        """A second, empty session of the same model, or of another checkpoint through the opener given."""
        if model is None:
            twin = copy.copy(self)
            twin._cache, twin._hidden, twin._step = KVCache(self.config, self._weight), None, None
            return twin
        if self._opener is None:
            raise UsageError(f"this session cannot open another model ({model})")
        return self._opener(model)

    def _extend_rope(self, capacity: int) -> None:
        if self.config.family != "llama" or (self._rope is not None and len(self._rope[0]) >= capacity):
            return
        positions = torch.arange(capacity, device=self._weight.device)
        cos, sin = rope_tables(self.config, positions, self._weight.dtype)
        sin[:, : self.config.d_head // 2].neg_()  # so that rotating is x * cos + swapped_halves(x) * sin
        self._rope = cos, sin

    def _decode_one(self, token_id: int) -> Tensor:
        """`decode` for a single row and token without torch; (V,) float32."""
        row = self._cache.rows[0]
        self._reserve(len(row) + 1)
        hidden, logits = self._numpy_step().one(token_id, len(row))
        self._hidden = torch.from_numpy(hidden)[None]
        row.append(token_id)
        return torch.from_numpy(logits).float()

    def _reserve(self, n_positions: int) -> None:
        """Make room for so many positions."""
        self._cache.reserve(n_positions)
        self._extend_rope(self._cache.capacity)

    def _numpy_step(self) -> NumpyStep:
        """The model and the cache, as views; made anew where the cache's memory is no longer the same."""
        version = self._cache.version
        if self._step is None or self._step[0] != version:
            self._step = version, self._new_numpy_step()
        return self._step[1]

    def _new_numpy_step(self) -> NumpyStep:
        def array(tensor: Any) -> Any:
            return tensor.detach().numpy()

        layers = [
            NumpyLayer(
                *map(array, (layer.attn_norm.weight, layer.qkv, layer.o.weight)),
                *map(array, (layer.ff_norm.weight, layer.up, layer.down.weight, keys, values)),
            )
            for layer, (keys, values) in zip(self._layers, self._cache.layers(), strict=True)
        ]
        assert self._rope is not None
        embed, norm, head, cos, sin = map(
            array, (self._weight, self.model.norm.weight, self.model.head.weight, *self._rope)
        )
        return NumpyStep(embed, layers, norm, head, cos, sin, self.config.norm_eps)

    def _forward(self, token_ids: Tensor) -> Tensor:
        """Feed (B, T) ids after what the rows hold, writing the cache; normed hidden states (B, T, C)."""
        lengths = [len(row) for row in self._cache.rows]
        n_new = token_ids.shape[1]
        end = max(lengths) + n_new
        self._reserve(end)
        if self._uses_numpy and token_ids.numel() <= MOST_TOKENS:
            return torch.from_numpy(self._numpy_step().several(token_ids.numpy(), np.array(lengths)))
        place: _Place
        if min(lengths) == max(lengths):
            place = _EvenPlace(lengths[0], end, token_ids.device)
        else:
            place = _RaggedPlace(lengths, n_new, token_ids.device)
        x = F.embedding(token_ids, self._weight)
        rope = None
        if self.model.pos_embed is not None:
            x = x + self.model.pos_embed.weight[place.positions]
        elif self._rope is not None:
            cos, sin = self._rope
            rope = cos[place.positions].unsqueeze(-2), sin[place.positions].unsqueeze(-2)  # (T or B, T, 1, D)
        for layer, (keys, values) in zip(self._layers, self._cache.layers(), strict=True):
            x = x + self._attention(layer, layer.attn_norm(x), keys, values, rope, place)
            inner = F.linear(layer.ff_norm(x), layer.up, layer.up_bias)
            if self.config.family == "llama":
                gate, up = inner.chunk(2, dim=-1)
                inner = self._activation(gate) * up
            else:
                inner = self._activation(inner)
            x = x + layer.down(inner)
        out: Tensor = self.model.norm(x)
        return out

    def _attention(
        self,
        layer: _Layer,
        x: Tensor,
        keys: Tensor,
        values: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        place: "_Place",
    ) -> Tensor:
        c = self.config
        n_rows, n_new, _ = x.shape
        heads = F.linear(x, layer.qkv, layer.qkv_bias).view(n_rows, n_new, -1, c.d_head)
        n_qk = c.n_head + c.n_kv_head
        qk, v = heads[:, :, :n_qk], heads[:, :, n_qk:]
        if rope is not None:
            cos, sin = rope
            qk = torch.addcmul(qk * cos, qk.roll(c.d_head // 2, dims=-1), sin)
        q, k = qk[:, :, : c.n_head].transpose(1, 2), qk[:, :, c.n_head :]
        place.write(keys, k)
        place.write(values, v)
        keys, values = keys[:, :, : place.end], values[:, :, : place.end]
        mixed = F.scaled_dot_product_attention(
            q, keys, values, place.mask, is_causal=place.is_causal, enable_gqa=c.n_head != c.n_kv_head
        )
        out: Tensor = layer.o(mixed.transpose(1, 2).reshape(n_rows, n_new, -1))
        return out

    def _logits(self, hidden: Tensor) -> Tensor:
        n_tokens = hidden.numel() // self.config.d_model
        if self._uses_numpy and n_tokens <= MOST_TOKENS:
            logits = self._numpy_step().logits(hidden.numpy().reshape(n_tokens, -1))
            return torch.from_numpy(logits).float().view(*hidden.shape[:-1], -1)
        return F.linear(hidden, self.model.head.weight).float()


class _EvenPlace:
    """Where new tokens go when every row has the same length: one slice, and no mask for a single token."""

    def __init__(self, start: int, end: int, device: torch.device) -> None:
        self.end = end
        self.positions = slice(start, end)
        n_new = end - start
        self.is_causal = start == 0 and n_new > 1
        self.mask = None
        if start > 0 and n_new > 1:
            self.mask = torch.ones(n_new, end, dtype=torch.bool, device=device).tril(start)

    def write(self, cache: Tensor, new: Tensor) -> None:
        """Put (B, T, K, D) into the (B, K, S, D) cache."""
        cache[:, :, self.positions] = new.transpose(1, 2)


class _RaggedPlace:
    """Where new tokens go when rows differ in length: every row at its own positions, the rest masked."""

    is_causal = False

    def __init__(self, lengths: list[int], n_new: int, device: torch.device) -> None:
        starts = torch.tensor(lengths, device=device)
        self.end = max(lengths) + n_new
        self.positions = starts[:, None] + torch.arange(n_new, device=device)  # (B, T)
        self.mask = (torch.arange(self.end, device=device) <= self.positions[..., None])[:, None]  # (B, 1, T, S)
        self._rows = torch.arange(len(lengths), device=device)[:, None]

    def write(self, cache: Tensor, new: Tensor) -> None:
        """Put (B, T, K, D) into the (B, K, S, D) cache."""
        cache.transpose(1, 2)[self._rows, self.positions] = new


_Place = _EvenPlace | _RaggedPlace


def _fused(block: nn.Module) -> _Layer:
    """Join a block's matrices; the originals become views of the joined ones."""
    attn, ff = block.attn, block.ff
    assert isinstance(attn, Attention)
    assert isinstance(ff, FeedForward)
    qkv, qkv_bias = _join([attn.q, attn.k, attn.v])
    up, up_bias = _join([ff.up] if ff.gate is None else [ff.gate, ff.up])
    assert isinstance(block.attn_norm, nn.Module)
    assert isinstance(block.ff_norm, nn.Module)
    return _Layer(block.attn_norm, qkv, qkv_bias, attn.o, block.ff_norm, up, up_bias, ff.down)


def _join(linears: list[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    weights = [linear.weight for linear in linears]
    joined = weights[0].detach() if len(weights) == 1 else torch.cat([weight.detach() for weight in weights])
    start = 0
    for linear in linears:
        linear.weight = nn.Parameter(joined[start : start + linear.out_features], requires_grad=False)
        start += linear.out_features
    biases = [
        parameter.detach() for linear in linears for name, parameter in linear.named_parameters() if name == "bias"
    ]
    return joined, torch.cat(biases) if biases else None


def check_prompts(prompts: Sequence[Sequence[int]], max_seq_len: int, vocab_size: int) -> None:
    """Refuse what no model can take.

    Raises:
        UsageError: no prompt, an empty or too long one, or an id outside the vocabulary.
    """
    if not prompts:
        raise UsageError("there is no prompt")
    for prompt in prompts:
        if not 1 <= len(prompt) <= max_seq_len:
            raise UsageError(f"a prompt has {len(prompt)} tokens; this model takes 1 to {max_seq_len}")
        if min(prompt) < 0 or max(prompt) >= vocab_size:
            raise UsageError(f"a prompt has token id {max(prompt)}; this vocabulary ends at {vocab_size - 1}")
