"""Multiply by matrices that take one byte per weight, with torch's own kernel (`_weight_int8pack_mm`).

Each row of a matrix has one scale, its largest weight divided by 127 (Zafrir et al. 2019, "Q8BERT", arXiv 1910.06188).
The kernel takes vectors in bfloat16 and sums in float32. Only the matrices of the blocks are rounded: embedding, norms
and cache stay in floats. So does the head, because rounded logits could not tell close tokens apart.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Int8Matrix"]

_MOST_COLUMNS = 32
"""The most vectors for which the kernel is faster than converting the weights to floats and multiplying those."""

_KERNEL_STEP = 16
"""The numbers of a row that the kernel reads at once. It reads beyond rows of another width, and may end the process
(PyTorch issue 136709). It also expects each row at an address that is a multiple of this many numbers."""


class Int8Matrix:
    """An (out, in) matrix of 8-bit integers, with one scale for each row."""

    def __init__(self, weight: Tensor) -> None:
        """Round a float matrix (out, in)."""
        largest = weight.float().abs().amax(dim=1).clamp_min(1e-30)
        scale = (largest / 127).bfloat16()
        # The kernel takes scales in bfloat16. A scale that was rounded down would clip the largest weights.
        scale = torch.where(scale.float() * 127 < largest, (scale.float() * (1 + 2**-7)).bfloat16(), scale)
        self._n_in = weight.shape[1]
        self._n_padding = -self._n_in % _KERNEL_STEP
        # Zeros at the end of each row change no product. A new tensor begins at an address that the kernel can read.
        self._padded = torch.zeros(len(weight), self._n_in + self._n_padding, dtype=torch.int8, device=weight.device)
        self._padded[:, : self._n_in] = (weight.float() / scale.float()[:, None]).round_().clamp_(-127, 127)
        self._scale = scale

    @property
    def _integers(self) -> Tensor:
        """The integers without the padding, (out, in)."""
        return self._padded[:, : self._n_in]

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply vectors: (..., in) -> (..., out), in the dtype of x."""
        rows = x.reshape(-1, self._n_in)
        if len(rows) > _MOST_COLUMNS:
            return F.linear(x, (self._integers * self._scale.float()[:, None]).to(x.dtype))
        out = torch._weight_int8pack_mm(self._for_kernel(rows), self._padded, self._scale)
        return out.to(x.dtype).view(*x.shape[:-1], len(self._padded))

    def _for_kernel(self, rows: Tensor) -> Tensor:
        """Copy vectors (N, in) to bfloat16, each followed by zeros up to a width that the kernel can read."""
        if self._n_padding:
            return F.pad(rows.bfloat16(), (0, self._n_padding))
        return rows.to(torch.bfloat16, copy=True, memory_format=torch.contiguous_format)

    def vector(self, x: NDArray[Any]) -> NDArray[np.float32]:
        """Multiply one vector: (in,) -> (out,) in float32."""
        out: NDArray[np.float32] = self(torch.from_numpy(x)[None])[0].numpy()
        return out

    def columns(self, x: NDArray[Any]) -> NDArray[np.float32]:
        """Multiply N vectors: (in, N) -> (out, N) in float32."""
        out: NDArray[np.float32] = self(torch.from_numpy(np.ascontiguousarray(x.T))).T.contiguous().numpy()
        return out

    def integers(self) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """Return the integers (out, in), and the scale of each row, (out,)."""
        return self._integers.numpy(), self._scale.float().numpy()
