"""Parts of the model with their gradients written out, for training on a CPU.

On a CPU, matrix products run at nearly full speed. The rest of a training step is reading and writing memory, and
these forms read and write less than autograd does. The plain forms are in `transformer.py`; tests hold both equal.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["product_dtype", "rms_norm", "rotate_halves", "swiglu", "written_out"]


def written_out(x: Tensor) -> bool:
    """Return whether to use the forms of this module for x: in training on a CPU, without `torch.compile`."""
    return x.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling()


def product_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of matrix products with x: that of autocast in training on a CPU, else the dtype of x.

    Activations are cast to it once; autocast alone would cast them before each product.
    """
    return torch.get_autocast_dtype("cpu") if written_out(x) and torch.is_autocast_enabled("cpu") else x.dtype


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Divide by the root of the mean square of the last axis and multiply by a weight (Zhang & Sennrich 2019).

    Args:
        x: (..., C).
        weight: (C,), of the same dtype.
        eps: added to the mean square.
        dtype: of the result.

    Returns:
        (..., C). It has first derivatives, but no second ones.
    """
    normed: Tensor = _RMSNorm.apply(x, weight, eps, dtype)  # type: ignore[no-untyped-call]
    return normed


def rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (x[i], x[i + D/2]) of the last axis by its angle.

    Args:
        x: (..., D).
        cos: broadcastable to (..., D), of the dtype of x; its second half repeats the first.
        sin: likewise.

    Returns:
        (..., D), laid out in memory like x. It has first derivatives by x, but no second ones.
    """
    half = x.shape[-1] // 2
    rotated: Tensor = _Rotated.apply(x, cos[..., :half], sin[..., :half])  # type: ignore[no-untyped-call]
    return rotated


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return SiLU(gate) * up; both have one shape. It has first derivatives, but no second ones."""
    gated: Tensor = _SwiGLU.apply(gate, up)  # type: ignore[no-untyped-call]
    return gated


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight).to(dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight, scale = ctx.saved_tensors
        gradient = gradient.to(x.dtype)
        weight_gradient = (gradient * x).mul_(scale).flatten(0, -2).sum(dim=0)
        normed_gradient = gradient * weight
        # The norm removes the length of x, so the gradient has no part along x: it is subtracted.
        along = (normed_gradient * x).mean(dim=-1, keepdim=True).mul_(scale.square())
        return normed_gradient.addcmul_(x, along, value=-1).mul_(scale), weight_gradient, None, None


class _Rotated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin, 1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotated(gradient, cos, sin, -1), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    rotated = torch.empty_like(x)
    (first, second), (new_first, new_second) = x.chunk(2, dim=-1), rotated.chunk(2, dim=-1)
    torch.mul(first, cos, out=new_first).addcmul_(second, sin, value=-direction)
    torch.mul(second, cos, out=new_second).addcmul_(first, sin, value=direction)
    return rotated


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        gate_gradient = gradient * up
        torch.ops.aten.silu_backward.grad_input(gate_gradient, gate, grad_input=gate_gradient)
        return gate_gradient, F.silu(gate).mul_(gradient)
