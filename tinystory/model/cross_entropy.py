"""Compute the output head and its cross-entropy together, for a stretch of tokens at a time.

If the vocabulary V is much larger than the width C, the logits are the largest tensor of a training step, and their
softmax and gradient are as large again. Here the logits exist only for one stretch of tokens. Its loss and its share of
the gradients are computed at once, as in Liger Kernel (Hsu et al. 2024, arXiv 2410.10989). So no product is computed
twice, and a stretch is still in the processor's cache when it is read again.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["IGNORE", "head_cross_entropy", "stretch"]

IGNORE = -100
"""The label of a position that is not scored."""

_LOGITS_AT_ONCE = 2**23
"""About the number of logits in one stretch; 32 MiB in float32."""

_MOST_STRETCHES = 16
"""The most stretches; for more tokens each stretch grows. A GPU needs large products, and `torch.compile` unrolls the
loop over the stretches."""


_LOGITS_IN_CACHE = 2**20
"""About the number of logits in one stretch on a CPU: they are still in its cache when they are read again."""

_FEWEST_IN_CACHE = 256
"""Tokens. With fewer, the products are too small, and the head's gradient is added to too often."""


def stretch(n_tokens: int, vocab_size: int, *, in_cache: bool = False) -> int:
    """Return the number of tokens in one stretch.

    Args:
        n_tokens: the number of all tokens.
        vocab_size: logits of one token.
        in_cache: True for a CPU that runs the loop without `torch.compile`.
    """
    n = _LOGITS_AT_ONCE // vocab_size
    if in_cache:
        n = min(n, max(_LOGITS_IN_CACHE // vocab_size, _FEWEST_IN_CACHE))
    return max(1, n, -(-n_tokens // _MOST_STRETCHES))


def head_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Return the sum over tokens of the negative log-likelihood of their labels, in nats.

    If autocast is on, products are computed in its dtype; everything else is computed in at least float32.

    Args:
        hidden: the input of the head, (N, C).
        weight: the matrix of the head, (V, C).
        labels: (N,) int64 below V; tokens with a negative label are not scored.

    Returns:
        A scalar, at least float32. It has first derivatives by `hidden` and `weight`, but no second ones.
    """
    loss: Tensor = _HeadCrossEntropy.apply(hidden, weight, labels)  # type: ignore[no-untyped-call]
    return loss


class _HeadCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        exact = torch.promote_types(hidden.dtype, torch.float32)
        n = stretch(len(labels), len(weight), in_cache=device == "cpu" and not torch.compiler.is_compiling())
        loss = torch.zeros((), dtype=exact, device=hidden.device)
        hidden_gradient = torch.empty_like(hidden)
        weight_gradient = torch.zeros_like(weight, dtype=exact)
        head = weight.to(dtype)
        stretches = (torch.split(tensor, n) for tensor in (hidden.to(dtype), labels, hidden_gradient))
        for part, part_labels, part_gradient in zip(*stretches, strict=True):
            scored = (part_labels >= 0)[:, None]
            at = part_labels.clamp(min=0)[:, None]
            logprobs = F.linear(part, head).to(exact).log_softmax(dim=-1)
            loss -= (logprobs.gather(1, at) * scored).sum()
            # The gradient of a token's loss by its logits is softmax - one-hot.
            gradient = logprobs.exp_().scatter_add_(1, at, logprobs.new_tensor(-1.0).expand(at.shape))
            gradient = gradient.mul_(scored).to(dtype)
            part_gradient.copy_(gradient @ head)
            weight_gradient += gradient.T @ part
        ctx.save_for_backward(hidden_gradient, weight_gradient.to(weight.dtype))
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return hidden_gradient * scale, weight_gradient * scale, None
