"""Collect what was inside the model at each token of a story: layers, heads, and what each part was good for.

It knows models, but neither trees nor HTML.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tinystory.errors import UsageError
from tinystory.inside.inspector import Inspector
from tinystory.session.loading import LoadedModel

if TYPE_CHECKING:
    from torch import Tensor

    from tinystory.inside.forward_pass import ForwardPass

__all__ = ["Looks", "TokenInside", "insides"]

Looks = list[tuple[int, float]]
"""The tokens that were looked at most, as (index, share)."""

_N_LOOKED_AT = 6
_N_OF_A_HEAD = 3
_LEAST_SHARE = 0.02
_LEAST_OF_A_HEAD = 0.05
_MOST_HEADS = 64


@dataclass
class TokenInside:
    """What was inside the model when it chose one token. What is not known is empty.

    Attributes:
        layers: for each layer (likeliest text, its probability, probability of this token).
        looked_at: what all heads together looked at most.
        heads: for each head, those of the first layer first, the share that went to BOS and what it looked at most.
        parts: the bits by which this token is less likely without a part: for each layer its heads, its attention, its
            feed-forward.
    """

    layers: list[tuple[str, float, float]] = field(default_factory=list)
    looked_at: Looks = field(default_factory=list)
    heads: list[tuple[float, Looks]] = field(default_factory=list)
    parts: list[float] = field(default_factory=list)


def insides(ids: Sequence[int], model: LoadedModel, n_bos: int) -> tuple[list[TokenInside], tuple[int, int], str]:
    """Return what was inside at each token but the first, the numbers of layers and of heads, and what is not known.

    Args:
        ids: the story, with BOS.
        model: the model.
        n_bos: the number of ids before the text. Places count without them.
    """
    if not 2 <= len(ids) <= model.session.max_seq_len:
        return [], (0, 0), "The story is longer than the model's context, so the page does not look inside the model."
    inspector = Inspector(model.header, model.session)
    try:
        run = inspector.run(ids)
    except UsageError as error:
        return [], (0, 0), f"The page does not look inside the model: {error}."
    n_layer, n_head = (0, 0) if run.attention is None else run.attention.shape[:2]
    is_small = n_layer * n_head <= _MOST_HEADS
    found = []
    for index in range(1, len(ids)):
        inside = TokenInside(_layers(run, index, model))
        if run.attention is not None:
            inside.looked_at, inside.heads = _looks(run, index, model, n_bos, heads=is_small)
        found.append(inside)
    if is_small and model.header.config is not None:
        for _, bits in inspector.effects_on_all(ids):
            for inside, value in zip(found, bits.tolist(), strict=True):
                inside.parts.append(value)
    note = "" if is_small else f"The page shows single heads of models with up to {_MOST_HEADS} heads; here are more."
    return found, (n_layer, n_head), note


def _layers(run: "ForwardPass", index: int, model: LoadedModel) -> list[tuple[str, float, float]]:
    from tinystory.inside.layers import guesses

    return [
        (model.tokenizer.token_text(guess.likeliest[0][0]), guess.likeliest[0][1], guess.taken or 0.0)
        for guess in guesses(run, index, 1)
    ]


def _looks(
    run: "ForwardPass", index: int, model: LoadedModel, n_bos: int, *, heads: bool
) -> tuple[Looks, list[tuple[float, Looks]]]:
    """Return what all heads together looked at; and the BOS share and the looks of each, if they are wanted."""
    from tinystory.inside.heads import gaze

    seen = gaze(run, index, model.tokenizer.bos_id)
    (together,) = _most(seen.words()[None], _N_LOOKED_AT, _LEAST_SHARE, n_bos)
    if not heads:
        return together, []
    each = _most(seen.of_each_head().flatten(0, 1), _N_OF_A_HEAD, _LEAST_OF_A_HEAD, n_bos)
    return together, list(zip(seen.bos_share.flatten().tolist(), each, strict=True))


def _most(shares: "Tensor", n: int, least: float, n_bos: int) -> list[Looks]:
    """Return the largest of each row of shares, (rows, N)."""
    best = shares.topk(min(n, shares.shape[-1]))
    return [
        [(place - n_bos, share) for place, share in zip(*row, strict=True) if share >= least and place >= n_bos]
        for row in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
