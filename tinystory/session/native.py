"""Our model behind the four verbs of a session: fused weights, in floats or int8, for rows of different lengths.

Shapes: B rows, T new positions, S cached positions, H query heads, K key/value heads, D d_head, C d_model, V
vocab_size. This is the cached form of `model.Transformer.forward`; a test holds the two equal.
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
from tinystory.session.steps.numpy_step import is_plain, pays
from tinystory.session.steps.weights import Affine, LayerWeights, ModelWeights, Rotations

if TYPE_CHECKING:
    from tinystory.session.steps.compiling import CompiledCode

__all__ = ["NativeSession"]


class _Linear(NamedTuple):
    """A matrix (out, in), in floats or in int8, with its bias."""

    weight: Tensor | Int8Matrix
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        if isinstance(self.weight, Tensor):
            return F.linear(x, self.weight, self.bias)
        out = self.weight(x)
        return out if self.bias is None else out + self.bias


class _Layer(NamedTuple):
    """One block's weights, q/k/v and gate/up each fused into one matrix."""

    attn_norm: nn.Module
    qkv: _Linear
    o: _Linear
    ff_norm: nn.Module
    up: _Linear
    down: _Linear


class NativeSession(CachedRows):
    """A `decoding.Session` over a `Transformer`.

    Constructing one fuses the model's weights in place: its separate matrices become views of the fused ones,
    so that nothing is held twice and the model stays usable. In int8, and when it is compiled, the session takes
    the blocks' matrices away from the model instead. A second session of the model comes from `open`.
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
        uses_numpy = on_cpu and (is_plain if int8 else pays)(model.config)
        super().__init__(model.config, bos_id, eos_ids, weight.new_zeros, uses_numpy=uses_numpy)
        if int8:  # whose kernel takes two rows in the time of one
            self._most_alone = min(1, self._most_alone)
        self.model = model
        self._opener = opener
        with torch.no_grad():
            self._layers = [_fused(block, int8) for block in model.blocks]
        self._activation = activation(self.config)
        self._weight = weight
        self._rope: tuple[Tensor, Tensor] | None = None  # cos, and sin with its first half negated; (S, D)

    def compile(self, code: "CompiledCode") -> None:
        """As `CachedRows.compile`; the matrices are taken away from the model, the packed ones are all that is left."""
        super().compile(code)
        self._layers = []
        for linear in (module for module in self.model.blocks.modules() if isinstance(module, nn.Linear)):
            linear.weight = nn.Parameter(linear.weight[:0].clone(), requires_grad=False)

    def open(self, model: str | None = None) -> Session:
        """A second, empty session of the same model, or of another checkpoint through the opener given."""
        if model is None:
            twin = copy.copy(self)
            twin._forget()
            return twin
        if self._opener is None:
            raise UsageError(f"this session cannot open another model ({model})")
        return self._opener(model)

    def _extend_rope(self) -> None:
        """Have an angle for each position of the cache."""
        capacity = self._cache.capacity
        if self.config.family != "llama" or (self._rope is not None and len(self._rope[0]) >= capacity):
            return
        positions = torch.arange(capacity, device=self._weight.device)
        cos, sin = rope_tables(self.config, positions, self._weight.dtype)
        sin[:, : self.config.d_head // 2].neg_()  # so that rotating is x * cos + swapped_halves(x) * sin
        self._rope = cos, sin

    def _array(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array)

    def _model_weights(self) -> ModelWeights:
        def affine(part: Any) -> Affine:
            bias = getattr(part, "bias", None)  # an RMSNorm has none
            return Affine(_array(part.weight), None if bias is None else _array(bias))

        layers = [LayerWeights(*map(affine, layer)) for layer in self._layers]
        positions = None if self.model.pos_embed is None else _array(self.model.pos_embed.weight)
        head = _array(self.model.head.weight)
        return ModelWeights(
            _array(self._weight), positions, layers, affine(self.model.norm), head, self.config.norm_eps
        )

    def _rotations(self) -> Rotations | None:
        self._extend_rope()
        return None if self._rope is None else (_array(self._rope[0]), _array(self._rope[1]))

    def _forward_many(self, token_ids: list[list[int]], lengths: list[int]) -> Tensor:
        self._extend_rope()
        device, n_new = self._weight.device, len(token_ids[0])
        place: _Place
        if min(lengths) == max(lengths):
            place = _EvenPlace(lengths[0], lengths[0] + n_new, device)
        else:
            place = _RaggedPlace(lengths, n_new, device)
        x = F.embedding(torch.tensor(token_ids, device=device), self._weight)
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


def _array(held: Any) -> Any:
    """A tensor's own memory; an int8 matrix as it is."""
    return held.detach().numpy() if isinstance(held, Tensor) else held


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


def _fused(block: nn.Module, int8: bool) -> _Layer:
    """Join a block's matrices; the originals become views of the joined ones, or in int8 empty."""
    attn, ff = block.attn, block.ff
    assert isinstance(attn, Attention)
    assert isinstance(ff, FeedForward)
    assert isinstance(block.attn_norm, nn.Module)
    assert isinstance(block.ff_norm, nn.Module)
    parts = [attn.q, attn.k, attn.v], [attn.o], [ff.up] if ff.gate is None else [ff.gate, ff.up], [ff.down]
    qkv, o, up, down = (_join(linears, int8) for linears in parts)
    return _Layer(block.attn_norm, qkv, o, block.ff_norm, up, down)


def _join(linears: list[nn.Linear], int8: bool) -> _Linear:
    weights = [linear.weight for linear in linears]
    joined = weights[0].detach() if len(weights) == 1 else torch.cat([weight.detach() for weight in weights])
    start = 0
    for linear in linears:
        own = joined[:0] if int8 else joined[start : start + linear.out_features]
        linear.weight = nn.Parameter(own.clone() if int8 else own, requires_grad=False)
        start += linear.out_features
    biases = [
        parameter.detach() for linear in linears for name, parameter in linear.named_parameters() if name == "bias"
    ]
    return _Linear(Int8Matrix(joined) if int8 else joined, torch.cat(biases) if biases else None)
