"""Describe a model's weights as arrays, in the form that the NumPy step and the compiled step compute with.

Matrices of one block that are multiplied with the same vector are joined. Shapes: V vocab_size, C d_model, S positions.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Affine", "Array", "LayerWeights", "Matrix", "ModelWeights", "Rotations", "Rounded"]

Array = NDArray[np.floating[Any]]


class Rounded(Protocol):
    """A matrix (out, in) in int8 that has methods to multiply vectors."""

    def vector(self, x: Array) -> Array:
        """Multiply one vector: (in,) -> (out,)."""
        ...

    def columns(self, x: Array) -> Array:
        """Multiply N vectors: (in, N) -> (out, N)."""
        ...

    def integers(self) -> tuple[NDArray[np.int8], Array]:
        """Return the integers (out, in), and the scale of each row, (out,)."""
        ...


Matrix = Array | Rounded


class Affine(NamedTuple):
    """A matrix (out, in) or the weights (C,) of a norm, and its bias; None stands for no bias."""

    weight: Any  # a Matrix, or an Array for a norm
    bias: Array | None = None


class LayerWeights(NamedTuple):
    """The weights of one block. q, k and v are joined into one matrix; so are gate and up if there is a gate."""

    attn_norm: Affine
    qkv: Affine
    o: Affine
    ff_norm: Affine
    up: Affine
    down: Affine


class ModelWeights(NamedTuple):
    """The weights of a model in floats; the matrices of its blocks may be in int8.

    Attributes:
        embed: the embedding, (V, C).
        positions: learned positions, (S, C); None for rotary positions.
        layers: the blocks.
        norm: the norm before the head.
        head: (V, C).
        eps: the small number that every norm adds to the variance.
    """

    embed: Array
    positions: Array | None
    layers: Sequence[LayerWeights]
    norm: Affine
    head: Array
    eps: float


Rotations = tuple[Array, Array]
"""Cosines and sines of every position, (S, D) each: as from `rope_tables`, with the first half of the sines negated."""
