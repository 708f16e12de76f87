"""Coupled randomness: every draw is a pure function of (seed, stream, story, position, token id).

Nothing is consumed in order, so two decoders with one seed see the same luck at the same place and part only
where they differ, a batch row draws what the story alone would draw, and an undone token draws the same again.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

__all__ = ["Noise"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


@dataclass(frozen=True)
class Noise:
    """The luck at one position of one story.

    Attributes:
        seed: the story's seed, any integer.
        stream: what the luck is for; draws of tokens share the stream "token".
        story: number among siblings of one request; 0 alone.
        position: absolute index of the token in the story, prompt included.
    """

    seed: int
    stream: str
    story: int
    position: int

    @cached_property
    def _key(self) -> np.uint64:
        text = f"{self.seed}/{self.stream}/{self.story}/{self.position}".encode()
        return np.uint64(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little"))

    def uniform(self, token_ids: NDArray[np.integer] | int = 0) -> NDArray[np.float64]:
        """Uniforms in (0, 1) with 53 bits, one for each id, the same shape; float64.

        The generator is SplitMix64 (Steele et al. 2014) with the id as its counter.
        """
        x = np.asarray(token_ids).astype(np.uint64)
        with np.errstate(over="ignore"):
            x = self._key + (x + np.uint64(1)) * _GOLDEN
            x = (x ^ (x >> np.uint64(30))) * _MIX_1
            x = (x ^ (x >> np.uint64(27))) * _MIX_2
            x ^= x >> np.uint64(31)
        u = ((x >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
        return np.minimum(u, 1 - 2.0**-53)  # the very top would round to 1

    def gumbel(self, token_ids: NDArray[np.integer]) -> NDArray[np.float64]:
        """Standard Gumbel noise −ln(−ln u) for each id; the argmax of logits plus it draws from their softmax."""
        noise: NDArray[np.float64] = -np.log(-np.log(self.uniform(token_ids)))
        return noise
