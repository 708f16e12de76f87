"""Choose stories of a source: a share of them, and the training or the test part of a split. Knows only texts."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from tinystory.errors import UsageError

__all__ = ["NothingSelected", "Selection"]


class NothingSelected(UsageError):
    """No story of a source is chosen."""


@dataclass(frozen=True)
class Selection:
    """A choice of stories by a hash of (seed, text).

    It does not depend on the order of the stories or on their files. Exact duplicates are chosen together, so no story
    is in both parts of a split. A smaller `fraction` or `test_split` chooses a subset of a larger one, and the two are
    independent. The shares are right on average: among n chosen stories, the error is about the square root of n.

    Attributes:
        fraction: share of the stories to use, above 0 and at most 1.
        test_split: share of these that is the test part, from 0 to below 1.
        part: which part of the split to take.
        seed: any integer; another seed makes another choice.
    """

    fraction: float = 1.0
    test_split: float = 0.0
    part: Literal["train", "test"] = "train"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            UsageError: a value is outside its range.
        """
        if not 0 < self.fraction <= 1:
            raise UsageError(f"fraction is {self.fraction}; it must be above 0 and at most 1")
        if not 0 <= self.test_split < 1:
            raise UsageError(f"test_split is {self.test_split}; it must be from 0 to below 1")
        if self.part not in ("train", "test"):
            raise UsageError(f"part is {self.part!r}; it must be train or test")
        if self.part == "test" and not self.test_split:
            raise UsageError("test_split is 0, so there is no test part")

    @property
    def is_everything(self) -> bool:
        """True if all stories are chosen, with any seed."""
        return self.fraction == 1 and not self.test_split

    def keeps(self, story: str) -> bool:
        """Return whether a story is chosen."""
        if self.is_everything:
            return True
        digest = hashlib.blake2b(story.encode(), digest_size=16, key=self._key).digest()
        used, side = ((int.from_bytes(half, "little") >> 11) / 2**53 for half in (digest[:8], digest[8:]))
        return used < self.fraction and (side < self.test_split) == (self.part == "test")

    @cached_property
    def _key(self) -> bytes:
        return hashlib.blake2b(str(self.seed).encode()).digest()
