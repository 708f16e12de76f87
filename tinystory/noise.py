"""Coupled noise: every random number is a pure function of (seed, stream, story, position, token id).

No number depends on the numbers before it. So two decoders with one seed get the same noise at the same place, and
their stories differ only because the decoders do. A story gets the same noise in a batch as alone, and an undone token
gets the same noise again. This module knows NumPy only.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["Noise"]

# 0-d arrays, because NumPy combines them with arrays faster than its scalars.
_GOLDEN, _MIX_1, _MIX_2 = (
    np.array(constant, dtype=np.uint64) for constant in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
_1, _11, _27, _30, _31 = (np.array(n, dtype=np.uint64) for n in (1, 11, 27, 30, 31))


@dataclass(frozen=True)
class Noise:
    """The noise at one position of one story.

    Attributes:
        seed: the seed of the story, any integer.
        stream: the purpose of the noise. All draws of tokens share the stream "token".
        story: the number of the branch; 0 if there is only one.
        position: the index of the token in the story, prompt included.
    """

    seed: int
    stream: str
    story: int
    position: int

    @cached_property
    def _key(self) -> NDArray[np.uint64]:
        text = f"{self.seed}/{self.stream}/{self.story}/{self.position}".encode()
        return np.frombuffer(hashlib.blake2b(text, digest_size=8).digest(), dtype="<u8")

    def uniform(self, token_ids: NDArray[np.integer] | int = 0) -> NDArray[np.float64]:
        """Return uniform float64 numbers in (0, 1) with 53 bits, one for each id, in the shape of the ids.

        The generator is SplitMix64 (Steele et al. 2014) with the id as its counter.
        """
        ids = np.asarray(token_ids, dtype=np.uint64)
        return self._uniform(_counters(ids.reshape(-1))).reshape(ids.shape)

    def gumbel(self, token_ids: NDArray[np.integer]) -> NDArray[np.float64]:
        """Return standard Gumbel noise −ln(−ln u) for each id: argmax(logits + noise) draws from their softmax."""
        return _gumbel(self.uniform(token_ids))

    def gumbel_of_all(self, vocab_size: int) -> NDArray[np.float64]:
        """Return the Gumbel noise of all ids of a vocabulary; a little faster than `gumbel`."""
        return _gumbel(self._uniform(_all_counters(vocab_size)))

    def _uniform(self, counters: NDArray[np.uint64]) -> NDArray[np.float64]:
        x = counters + self._key
        x ^= x >> _30
        x *= _MIX_1
        x ^= x >> _27
        x *= _MIX_2
        x ^= x >> _31
        x >>= _11
        u = x.astype(np.float64)
        u += 0.5
        u *= 2.0**-53
        return np.minimum(u, 1 - 2.0**-53, out=u)  # the largest value would round to 1


def _counters(ids: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return (ids + _1) * _GOLDEN


@lru_cache(maxsize=4)
def _all_counters(vocab_size: int) -> NDArray[np.uint64]:
    return _counters(np.arange(vocab_size, dtype=np.uint64))


def _gumbel(uniforms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Replace each u by −ln(−ln u), in place."""
    for _ in range(2):
        np.log(uniforms, out=uniforms)
        np.negative(uniforms, out=uniforms)
    return uniforms
