"""Where the heads look: the weights with which the model collected information before it chose a token."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tinystory.errors import UsageError
from tinystory.inside.forward_pass import ForwardPass
from tinystory.inside.layers import check_index

__all__ = ["Gaze", "gaze"]


@dataclass(frozen=True, eq=False)
class Gaze:
    """The weights that the heads gave to earlier tokens before one token was chosen.

    A head that has nothing to collect puts most of its weight on the first token. So the share of BOS says how idle a
    head is, and it is kept apart from the shares of the words (Xiao et al. 2023, arXiv 2309.17453).

    Attributes:
        weights: (L, H, N) for the N tokens before the chosen one. They add up to 1 for each head.
        has_bos: True if the first of these tokens is BOS.
    """

    weights: Tensor
    has_bos: bool

    @property
    def bos_share(self) -> Tensor:
        """The share that each head gives to BOS, (L, H); 0 without BOS."""
        return self.weights[..., 0] if self.has_bos else torch.zeros(self.weights.shape[:-1])

    def words(self, layer: int | None = None, head: int | None = None) -> Tensor:
        """Return how a weight is shared among the words, (N,); the shares add up to 1, and BOS has 0.

        Args:
            layer: the index of a layer, from 0; None for the mean of all layers.
            head: the index of a head of this layer, from 0; None for the mean of its heads.

        Raises:
            UsageError: there is no such layer or head.
        """
        n_layer, n_head, n = self.weights.shape
        for value, size, name in ((layer, n_layer, "layer"), (head, n_head, "head")):
            if value is not None and not 0 <= value < size:
                raise UsageError(f"there is no {name} {value + 1}; the model has {size}")
        chosen = self.weights if layer is None else self.weights[layer : layer + 1]
        chosen = chosen if head is None else chosen[:, head : head + 1]
        shares = chosen.mean(dim=(0, 1))
        if self.has_bos:
            shares = torch.cat((torch.zeros(1), shares[1:]))
        total = float(shares.sum())
        return shares / total if total > 0 else torch.zeros(n)

    def of_each_head(self) -> Tensor:
        """Return how each head shares its weight among the words, (L, H, N), as `words` does for one."""
        shares = self.weights.clone()
        if self.has_bos:
            shares[..., 0] = 0
        return shares / shares.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(shares.dtype).tiny)


def gaze(run: ForwardPass, index: int, bos_id: int | None) -> Gaze:
    """Return where the heads looked before one token was chosen.

    Args:
        run: a pass over the story, at least up to the token before.
        index: the place of the token in the story, from 1 to T. T is the token that would come next.
        bos_id: the model's BOS; None if it has none.

    Raises:
        IndexError: the index is out of this range.
        UsageError: this architecture does not give its attention.
    """
    check_index(run, index)
    if run.attention is None:
        raise UsageError("this architecture does not give the weights of its attention")
    return Gaze(run.attention[:, :, index - 1, :index].float().cpu(), run.token_ids[0] == bos_id)
