"""Cliff: sort the 20 likeliest tokens, find the deepest drop between two neighbours, and keep the tokens above it.

Try it: tinystory generate "Once upon a time" --decoder-file one_file_decoder.py -d "cliff | sample 0.8"
Keep it: put this file into the `decoders` folder of your tinystory configuration (~/.config/tinystory on Linux).
"""

import math
from dataclasses import dataclass

from tinystory.decoding import LogitsProcessor, option


@dataclass(frozen=True)
class Cliff(LogitsProcessor):
    """Keep the tokens above the deepest drop in the logits of the likeliest tokens."""

    name = "cliff"
    among: int = option(20, ge=2, help="how many of the likeliest tokens are compared")

    def __call__(self, logits, step):
        top = logits.topk(min(self.among, len(logits))).values
        last_kept = top.diff().argmin() if top.isfinite().all() and len(top) > 1 else top.isfinite().sum() - 1
        return logits.masked_fill(logits < top[last_kept], -math.inf)
