"""The head and the cross-entropy behind it, a stretch of tokens at a time.

With a vocabulary V much larger than the width C, the logits of a step are its largest tensor, and their softmax and
gradient are as large again. Here they exist for a stretch only, which is turned into its loss and its share of the
gradients at once, as in Liger Kernel (Hsu et al. 2024, arXiv 2410.10989): no product is computed twice, and a
stretch is still in the cache when it is read again.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["head_cross_entropy", "stretch"]

_LOGITS_AT_ONCE = 2**23
"""Numbers of a stretch's logits, about; 32 MiB in float32."""

_MOST_STRETCHES = 16
"""Beyond them the stretches grow instead: a GPU wants large products, and `torch.compile` unrolls the loop."""


_LOGITS_IN_CACHE = 2**20
"""Numbers of a stretch's logits on a CPU, about: what is still in its cache when it is read again."""

_LEAST_IN_CACHE = 256
"""Tokens: with fewer the products are too small, and the head's gradient is added to too often."""


def stretch(n_tokens: int, vocab_size: int, *, in_cache: bool = False) -> int:
    """How many of so many tokens have logits at a time; `in_cache` is for a CPU that runs the loop as it is."""
    n = _LOGITS_AT_ONCE // vocab_size
    if in_cache:
        n = min(n, max(_LOGITS_IN_CACHE // vocab_size, _LEAST_IN_CACHE))
    return max(1, n, -(-n_tokens // _MOST_STRETCHES))


def head_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Sum over tokens of the negative log-likelihood of their labels, in nats.

    Products are computed in autocast's dtype where it is on, everything else in at least float32.

    Args:
        hidden: (N, C), what goes into the head.
        weight: (V, C), the head's.
        labels: (N,) int64 below V; a negative one is not scored.

    Returns:
        A scalar, at least float32. It can be differentiated once, by `hidden` and `weight`.
    """
    loss: Tensor = _HeadCrossEntropy.apply(hidden, weight, labels)  # type: ignore[no-untyped-call]
    return loss


class _HeadCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        exact = torch.promote_types(hidden.dtype, torch.float32)
        in_cache = device == "cpu" and not torch.compiler.is_compiling()
        n = stretch(len(labels), len(weight), in_cache=in_cache)
        loss = torch.zeros((), dtype=exact, device=hidden.device)
        hidden_gradient = torch.empty_like(hidden)
        weight_gradient = torch.zeros_like(weight, dtype=exact)
        head = weight.to(dtype)
        parts = (torch.split(tensor, n) for tensor in (hidden.to(dtype), labels, hidden_gradient))
        for own, own_labels, own_gradient in zip(*parts, strict=True):
            scored = (own_labels >= 0)[:, None]
            at = own_labels.clamp(min=0)[:, None]
            logprobs = F.linear(own, head).to(exact).log_softmax(dim=-1)
            loss -= (logprobs.gather(1, at) * scored).sum()
            # By its logits, a token's loss has the gradient softmax - one-hot.
            gradient = logprobs.exp_().scatter_add_(1, at, logprobs.new_tensor(-1.0).expand(at.shape))
            gradient = gradient.mul_(scored).to(dtype)
            own_gradient.copy_(gradient @ head)
            weight_gradient += gradient.T @ own
        ctx.save_for_backward(hidden_gradient, weight_gradient.to(weight.dtype))
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return hidden_gradient * scale, weight_gradient * scale, None
