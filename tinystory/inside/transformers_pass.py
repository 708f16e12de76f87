"""Look inside any causal model of transformers: the same `ForwardPass`, as far as the architecture gives it.

The final norm is found by its output: it is the module that computes what the head reads. Some architectures do more
between the two, or scale the logits afterwards. So the layers are read only if norm and head together give the model's
own logits.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tinystory.errors import UsageError, one_line
from tinystory.inside.forward_pass import ForwardPass

__all__ = ["transformers_pass"]

_TOLERANCE = 1e-3
"""The largest difference between norm with head and the model's own logits, relative to the spread of the logits."""


@torch.inference_mode()
def transformers_pass(model: Any, token_ids: Sequence[int]) -> ForwardPass:
    """Run a causal language model of transformers over a story.

    Args:
        model: in eval mode. Its attention is computed by plain torch during the pass, since faster kernels give no
            weights; afterwards the model computes as before.
        token_ids: the story, at least one id, not longer than the context.

    Raises:
        UsageError: the architecture gives no hidden states, or they do not lead to its logits.
    """
    seen = _Seen()
    hooks = [module.register_forward_hook(seen.module) for module in model.modules() if not list(module.children())]
    hooks.append(model.get_output_embeddings().register_forward_pre_hook(seen.head))
    kernel = model.config._attn_implementation
    try:
        model.set_attn_implementation("eager")
        ids = torch.tensor([list(token_ids)], device=model.device)
        output = model(input_ids=ids, output_hidden_states=True, output_attentions=True, use_cache=False)
    except Exception as error:  # an architecture may fail in any way without its usual kernel
        raise UsageError(f"this architecture does not show its layers: {one_line(error)}") from error
    finally:
        for hook in hooks:
            hook.remove()
        model.set_attn_implementation(kernel)
    logits = output.logits[0].float()
    norm = seen.norm()
    states = getattr(output, "hidden_states", None)
    if norm is None or not states or any(state.shape != states[0].shape for state in states):
        raise UsageError("this architecture does not show its layers: no norm stands before its head")

    def read_out(stream: Tensor) -> Tensor:
        read: Tensor = model.get_output_embeddings()(norm[0](stream))
        return read

    stream = torch.cat((*states[:-1], norm[1]))  # the last state has passed the norm already
    difference = (read_out(stream[-1]).float() - logits).abs().max()
    if not difference <= _TOLERANCE * logits.std(dim=-1).max():
        raise UsageError("this architecture does not show its layers: its logits are more than norm and head")
    return ForwardPass(tuple(token_ids), stream, _attention(output), read_out, logits)


class _Seen:
    """What the hooks of one pass have seen: the input of the head, and the modules that computed it."""

    def __init__(self) -> None:
        self._results: list[tuple[Any, Tensor, Tensor]] = []
        self._head_input: Tensor | None = None

    def module(self, module: Any, arguments: tuple[Any, ...], result: Any) -> None:
        if isinstance(result, Tensor) and arguments and isinstance(arguments[0], Tensor):
            self._results.append((module, arguments[0], result))

    def head(self, _module: Any, arguments: tuple[Tensor, ...]) -> None:
        self._head_input = arguments[0]

    def norm(self) -> tuple[Any, Tensor] | None:
        """Return the module whose result the head has read, and its input, (1, T, C); None if there is none."""
        wanted = self._head_input
        if wanted is None:
            return None
        for module, given, result in reversed(self._results):
            if result.data_ptr() == wanted.data_ptr() and given.shape == result.shape == wanted.shape:
                return module, given
        return None


def _attention(output: Any) -> Tensor | None:
    """Return the weights of all heads, (L, H, T, T); None if some are missing or are no shares."""
    weights = getattr(output, "attentions", None)
    if not weights or any(weight is None or weight.shape != weights[0].shape for weight in weights):
        return None
    together = torch.cat(tuple(weights)).float()
    sums = together.sum(dim=-1)
    is_square = together.ndim == 4 and together.shape[-1] == together.shape[-2]
    return together if is_square and torch.allclose(sums, torch.ones_like(sums), atol=1e-3) else None
