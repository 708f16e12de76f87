"""Parts of the model with their gradients written out: on a CPU fewer passes over memory than autograd's own.

A CPU's matrix products run at its full speed; what a training step spends beside them is spent on reading and writing.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["product_dtype", "rms_norm", "rotate_halves", "swiglu", "written_out"]


def written_out(x: Tensor) -> bool:
    """Tell whether what follows pays for x: in eager training on a CPU."""
    return x.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling()


def product_dtype(x: Tensor) -> torch.dtype:
    """Find the dtype of products with x: autocast's on a CPU where it is on, so that x is cast once, else x's own."""
    return torch.get_autocast_dtype("cpu") if written_out(x) and torch.is_autocast_enabled("cpu") else x.dtype


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Divide by the root of the mean square of the last axis, multiply by a weight (Zhang & Sennrich 2019).

    Args:
        x: (..., C).
        weight: (C,), of the same dtype.
        eps: added to the mean square.
        dtype: of the result.

    Returns:
        (..., C). It can be differentiated once.
    """
    normed: Tensor = _RMSNorm.apply(x, weight, eps, dtype)  # type: ignore[no-untyped-call]
    return normed


def rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (x[i], x[i + D/2]) of the last axis by its angle.

    Args:
        x: (..., D).
        cos: broadcastable to (..., D), its second half like its first; of the dtype of x.
        sin: likewise.

    Returns:
        (..., D), like x in memory. It can be differentiated once, by x.
    """
    half = x.shape[-1] // 2
    rotated: Tensor = _Rotated.apply(x, cos[..., :half], sin[..., :half])  # type: ignore[no-untyped-call]
    return rotated


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """SiLU of `gate` times `up`, of any one shape; it can be differentiated once."""
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
        of_weight = (gradient * x).mul_(scale).flatten(0, -2).sum(dim=0)
        of_normed = gradient * weight
        # What the gradient has along x is taken out again, as the norm takes the length out of x.
        along = (of_normed * x).mean(dim=-1, keepdim=True).mul_(scale.square())
        return of_normed.addcmul_(x, along, value=-1).mul_(scale), of_weight, None, None


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
    (first, second), (own_first, own_second) = x.chunk(2, dim=-1), rotated.chunk(2, dim=-1)
    torch.mul(first, cos, out=own_first).addcmul_(second, sin, value=-direction)
    torch.mul(second, cos, out=own_second).addcmul_(first, sin, value=direction)
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
        of_gate = gradient * up
        torch.ops.aten.silu_backward.grad_input(of_gate, gate, grad_input=of_gate)
        return of_gate, F.silu(gate).mul_(gradient)
