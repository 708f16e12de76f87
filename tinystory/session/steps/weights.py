"""A model's weights as arrays, each block's matrices joined: what the steps in NumPy and in compiled code compute with.

Shapes: V vocab_size, C d_model, S positions.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Affine", "Array", "LayerWeights", "Matrix", "ModelWeights", "Rotations", "Rounded"]

Array = NDArray[np.floating[Any]]


class Rounded(Protocol):
    """A matrix (out, in) in int8, which multiplies by itself."""

    def vector(self, x: Array) -> Array:
        """(in,) -> (out,)."""
        ...

    def columns(self, x: Array) -> Array:
        """(in, N) -> (out, N)."""
        ...

    def integers(self) -> tuple[NDArray[np.int8], Array]:
        """(out, in), and the scale of each row, (out,)."""
        ...


Matrix = Array | Rounded


class Affine(NamedTuple):
    """A matrix (out, in), or the (C,) weights of a norm, with a bias where there is one."""

    weight: Any  # a Matrix; of a norm an Array
    bias: Array | None = None


class LayerWeights(NamedTuple):
    """One block, q/k/v and, where there is a gate, gate/up each joined into one."""

    attn_norm: Affine
    qkv: Affine
    o: Affine
    ff_norm: Affine
    up: Affine
    down: Affine


class ModelWeights(NamedTuple):
    """A model in floats, matrices of its blocks perhaps in int8.

    Attributes:
        embed: (V, C).
        positions: (S, C) of learned positions; None where they are rotary.
        layers: the blocks.
        norm: the last one.
        head: (V, C).
        eps: of the norms.
    """

    embed: Array
    positions: Array | None
    layers: Sequence[LayerWeights]
    norm: Affine
    head: Array
    eps: float


Rotations = tuple[Array, Array]
"""Cosines and sines of every position, (S, D) each: `model.rope_tables`, the first half of the sines negated."""
