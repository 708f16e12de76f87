"""Run a `Transformer` as a session in torch: with a cache, fused weights in floats or int8, and rows of any lengths.

This is the cached form of `Transformer.forward`; a test holds the two equal. Shapes: B rows, T new positions, S cached
positions, H query heads, K key/value heads, D d_head, C d_model, V vocab_size.
"""

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tinystory.decoding import Session
from tinystory.errors import UsageError
from tinystory.model.transformer import Attention, FeedForward, Transformer, activation, rope_tables
from tinystory.session.rows import CachedRows
from tinystory.session.steps.int8 import Int8Matrix
from tinystory.session.steps.numpy_step import beats_torch, is_plain
from tinystory.session.steps.weights import Affine, LayerWeights, ModelWeights, Rotations

if TYPE_CHECKING:
    from tinystory.session.steps.compiled_code import CompiledCode

__all__ = ["NativeSession"]


class _Linear(NamedTuple):
    """A matrix (out, in) in floats or in int8, and its bias."""

    weight: Tensor | Int8Matrix
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        if isinstance(self.weight, Tensor):
            return F.linear(x, self.weight, self.bias)
        out = self.weight(x)
        return out if self.bias is None else out + self.bias


class _Layer(NamedTuple):
    """The weights of one block. q, k and v are fused into one matrix, and so are gate and up."""

    attn_norm: nn.Module
    qkv: _Linear
    o: _Linear
    ff_norm: nn.Module
    up: _Linear
    down: _Linear


class NativeSession(CachedRows):
    """A `decoding.Session` over a `Transformer`.

    The constructor fuses the model's weights in place: the separate matrices become views of the fused ones. So no
    weight is in memory twice, and the model stays usable. In int8, and after `compile`, the matrices of the model's
    blocks are empty instead, and only the session can compute. Use `open` for a second session of the model.
    """

    prefill = torch.inference_mode()(CachedRows.prefill)
    decode = torch.inference_mode()(CachedRows.decode)
    reorder = torch.inference_mode()(CachedRows.reorder)

    def __init__(
        self,
        model: Transformer,
        bos_id: int | None = None,
        eos_ids: frozenset[int] = frozenset(),
        opener: Callable[[str], Session] | None = None,
        *,
        int8: bool = False,
    ) -> None:
        weight = model.embed.weight
        on_cpu = weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.float64)
        uses_numpy = on_cpu and (is_plain if int8 else beats_torch)(model.config)
        super().__init__(model.config, bos_id, eos_ids, weight.new_zeros, uses_numpy=uses_numpy)
        if int8:  # its kernel takes the same time for two rows as for one
            self._most_alone = min(1, self._most_alone)
        self.model = model
        self._opener = opener
        with torch.no_grad():
            self._layers = [_fused(block, int8) for block in model.blocks]
        self._activation = activation(self.config)
        self._embed = weight
        self._rope: tuple[Tensor, Tensor] | None = None  # cos, and sin with its first half negated; (S, D)

    def compile(self, code: "CompiledCode") -> None:
        """Compile as `CachedRows.compile` does, and empty the model's matrices; only the packed ones stay in memory."""
        super().compile(code)
        self._layers = []
        for linear in (module for module in self.model.blocks.modules() if isinstance(module, nn.Linear)):
            linear.weight = nn.Parameter(linear.weight[:0].clone(), requires_grad=False)

    def open(self, model: str | None = None) -> Session:
        """Return a second, empty session: of this model for None, else of a checkpoint by its name.

        Raises:
            UsageError: this session has no opener for other models.
        """
        if model is None:
            twin = copy.copy(self)
            twin._forget()
            return twin
        if self._opener is None:
            raise UsageError(f"this session cannot open another model ({model})")
        return self._opener(model)

    def _extend_rope(self) -> None:
        """Extend the tables of angles to all positions of the cache."""
        capacity = self._cache.capacity
        if self.config.family != "llama" or (self._rope is not None and len(self._rope[0]) >= capacity):
            return
        cos, sin = rope_tables(self.config, torch.arange(capacity, device="cpu"), self._embed.dtype)
        sin[:, : self.config.d_head // 2].neg_()  # so that rotating is x * cos + swapped_halves(x) * sin
        self._rope = cos.to(self._embed.device), sin.to(self._embed.device)

    def _array(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array)

    def _model_weights(self) -> ModelWeights:
        def affine(part: Any) -> Affine:
            bias = getattr(part, "bias", None)  # an RMSNorm has none
            return Affine(_as_numpy(part.weight), None if bias is None else _as_numpy(bias))

        layers = [LayerWeights(*map(affine, layer)) for layer in self._layers]
        positions = None if self.model.pos_embed is None else _as_numpy(self.model.pos_embed.weight)
        head = _as_numpy(self.model.head.weight)
        return ModelWeights(
            _as_numpy(self._embed), positions, layers, affine(self.model.norm), head, self.config.norm_eps
        )

    def _rotations(self) -> Rotations | None:
        self._extend_rope()
        return None if self._rope is None else (_as_numpy(self._rope[0]), _as_numpy(self._rope[1]))

    def _forward_many(self, token_ids: list[list[int]], lengths: list[int]) -> Tensor:
        self._extend_rope()
        device, n_new = self._embed.device, len(token_ids[0])
        place: _Place
        if min(lengths) == max(lengths):
            place = _EvenPlace(lengths[0], lengths[0] + n_new, device)
        else:
            place = _RaggedPlace(lengths, n_new, device)
        x = F.embedding(torch.tensor(token_ids, device=device), self._embed)
        rope = None
        if self.model.pos_embed is not None:
            x = x + self.model.pos_embed.weight[place.positions]
        elif self._rope is not None:
            cos, sin = self._rope
            rope = cos[place.positions].unsqueeze(-2), sin[place.positions].unsqueeze(-2)  # (T or B, T, 1, D)
        for layer, (keys, values) in zip(self._layers, self._cache.layers(), strict=True):
            x = x + self._attention(layer, layer.attn_norm(x), keys, values, rope, place)
            inner = layer.up(layer.ff_norm(x))
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
        heads = layer.qkv(x).view(n_rows, n_new, -1, c.d_head)
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
        return layer.o(mixed.transpose(1, 2).reshape(n_rows, n_new, -1))

    def _logits_of_many(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.model.head.weight).float()


def _as_numpy(weight: Any) -> Any:
    """Return a tensor as a NumPy array of the same memory; return an int8 matrix unchanged."""
    return weight.detach().numpy() if isinstance(weight, Tensor) else weight


class _EvenPlace:
    """The place of new tokens if all rows have the same length: one slice, and no mask for a single token."""

    def __init__(self, start: int, end: int, device: torch.device) -> None:
        self.end = end
        self.positions = slice(start, end)
        n_new = end - start
        self.is_causal = start == 0 and n_new > 1
        self.mask = None
        if start > 0 and n_new > 1:
            self.mask = torch.ones(n_new, end, dtype=torch.bool, device=device).tril(start)

    def write(self, cache: Tensor, new: Tensor) -> None:
        """Write new keys or values (B, T, K, D) into the cache (B, K, S, D)."""
        cache[:, :, self.positions] = new.transpose(1, 2)


class _RaggedPlace:
    """The place of new tokens if rows differ in length: each row has its own positions, and the rest is masked."""

    is_causal = False

    def __init__(self, lengths: list[int], n_new: int, device: torch.device) -> None:
        starts = torch.tensor(lengths, device=device)
        self.end = max(lengths) + n_new
        self.positions = starts[:, None] + torch.arange(n_new, device=device)  # (B, T)
        self.mask = (torch.arange(self.end, device=device) <= self.positions[..., None])[:, None]  # (B, 1, T, S)
        self._rows = torch.arange(len(lengths), device=device)[:, None]

    def write(self, cache: Tensor, new: Tensor) -> None:
        """Write new keys or values (B, T, K, D) into the cache (B, K, S, D)."""
        cache.transpose(1, 2)[self._rows, self.positions] = new


_Place = _EvenPlace | _RaggedPlace


def _fused(block: nn.Module, int8: bool) -> _Layer:
    """Join the matrices of a block. The block's own matrices become views of the joined ones, or empty in int8."""
    attn, ff = block.attn, block.ff
    assert isinstance(attn, Attention)
    assert isinstance(ff, FeedForward)
    assert isinstance(block.attn_norm, nn.Module)
    assert isinstance(block.ff_norm, nn.Module)
    parts = [attn.q, attn.k, attn.v], [attn.o], [ff.up] if ff.gate is None else [ff.gate, ff.up], [ff.down]
    qkv, o, up, down = (_join(linears, int8) for linears in parts)
    return _Layer(block.attn_norm, qkv, o, block.ff_norm, up, down)


def _join(linears: list[nn.Linear], int8: bool) -> _Linear:
    """Join linear layers along their outputs."""
    weights = [linear.weight for linear in linears]
    joined = weights[0].detach() if len(weights) == 1 else torch.cat([weight.detach() for weight in weights])
    start = 0
    for linear in linears:
        part = joined[:0] if int8 else joined[start : start + linear.out_features]
        linear.weight = nn.Parameter(part.clone() if int8 else part, requires_grad=False)
        start += linear.out_features
    biases = [
        parameter.detach() for linear in linears for name, parameter in linear.named_parameters() if name == "bias"
    ]
    return _Linear(Int8Matrix(joined) if int8 else joined, torch.cat(biases) if biases else None)
