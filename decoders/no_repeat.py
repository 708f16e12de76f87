"""Blocking of repeated n-grams (Paulus, Xiong and Socher 2017, arXiv 1705.04304, for n = 3).

A token is removed if it would complete n tokens that already stand in the story in this order. The whole story counts,
with the prompt and BOS, as in transformers. If every token would repeat n tokens, transformers leaves no token; here
all of them stay.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tinystory.decoding import LogitsProcessor, Step, option

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class NoRepeat(LogitsProcessor):
    """Remove tokens that would repeat n tokens in a row that the story already has."""

    name = "no-repeat"
    example = "no-repeat 3"
    n: int = option(ge=1, instead="leave the stage out", help="how many tokens in a row must not be repeated")

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """Set the (V,) logits of tokens that would complete an n-gram of the story to −inf."""
        import torch

        if len(step.token_ids) < self.n:
            return logits
        token_ids = np.array(step.token_ids)
        ngrams = np.lib.stride_tricks.sliding_window_view(token_ids, self.n)
        latest = token_ids[len(token_ids) - self.n + 1 :]
        repeats = ngrams[(ngrams[:, :-1] == latest).all(axis=1), -1]
        output = logits.index_fill(0, torch.from_numpy(repeats).to(logits.device), -math.inf)
        return output if output.max() > -math.inf else logits
