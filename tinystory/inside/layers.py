"""The logit lens: what the model would have said after each layer.

The residual stream has the same width everywhere, so the model's final norm and head can read it after any layer
(nostalgebraist 2020, "interpreting GPT: the logit lens"). What they read in early layers is only a hint: these layers
may use other directions than the last one, and a lens trained for each layer reads more (Belrose et al. 2023, arXiv
2303.08112).
"""

import math
from dataclasses import dataclass

import torch

from tinystory.inside.forward_pass import ForwardPass

__all__ = ["LayerGuess", "decided_at", "guesses"]


@dataclass(frozen=True)
class LayerGuess:
    """What the model would have said after one layer.

    Attributes:
        layer: 0 for the embeddings alone, then the number of the layer from 1.
        likeliest: the likeliest tokens and their probabilities, the most likely first.
        taken: the probability of the token that stands in the story; None at the end of the story.
        taken_rank: the place of this token among all, from 1; None at the end of the story.
        entropy: of the distribution, in bits.
    """

    layer: int
    likeliest: tuple[tuple[int, float], ...]
    taken: float | None
    taken_rank: int | None
    entropy: float


@torch.inference_mode()
def guesses(run: ForwardPass, index: int, n_likeliest: int = 5) -> list[LayerGuess]:
    """Return what the model would have said after each layer about one token, L + 1 guesses.

    Args:
        run: a pass over the story, at least up to the token before.
        index: the place of the token in the story, from 1 to T. T is the token that would come next.
        n_likeliest: how many tokens each guess names.

    Raises:
        IndexError: the index is out of this range.
    """
    check_index(run, index)
    taken = run.token_ids[index] if index < len(run.token_ids) else None
    after = [*run.read_out(run.stream[:-1, index - 1]).float(), run.logits[index - 1]]
    return [_guess(layer, logits, taken, n_likeliest) for layer, logits in enumerate(after)]


def decided_at(layers: list[LayerGuess]) -> int:
    """Return the first layer from which on the likeliest token is that of the last layer."""
    last = layers[-1].likeliest[0][0]
    decided = layers[-1].layer
    for guess in reversed(layers):
        if guess.likeliest[0][0] != last:
            break
        decided = guess.layer
    return decided


def check_index(run: ForwardPass, index: int) -> None:
    """Raise IndexError unless the pass has computed what the model said about the token of this index."""
    if not 1 <= index <= len(run.token_ids):
        raise IndexError(f"the token {index} is not between 1 and {len(run.token_ids)}")


def _guess(layer: int, logits: torch.Tensor, taken: int | None, n_likeliest: int) -> LayerGuess:
    log_probabilities = logits.cpu().double().log_softmax(dim=-1)
    probabilities = log_probabilities.exp()
    best = probabilities.topk(min(n_likeliest, len(probabilities)))
    entropy = float(-(probabilities * log_probabilities).nansum()) / math.log(2)  # 0 · log 0 counts as 0
    return LayerGuess(
        layer,
        tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True)),
        None if taken is None else float(probabilities[taken]),
        None if taken is None else int((probabilities > probabilities[taken]).sum()) + 1,
        entropy,
    )
