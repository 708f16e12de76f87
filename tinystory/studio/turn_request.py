"""A request for a turn: where it goes on from, what was typed, and what picks its tokens."""

from dataclasses import dataclass

from tinystory.decoding import Decoder

__all__ = ["TurnRequest"]


@dataclass(frozen=True, kw_only=True)
class TurnRequest:
    """A turn that is asked for and not yet written.

    Attributes:
        parent: the number of the turn that it goes on from.
        kept: how many tokens of the parent's story it keeps.
        typed: the text that the writer adds.
        typed_ids: the tokens of `typed`, without those of `heal`.
        decoder: picks the tokens.
        seed: the seed of the noise.
        max_new_tokens: the largest number of new tokens.
        heal: the end of `typed` that the model's first tokens have to spell again; empty if no word was cut.
        number: the number of the branch among those written at once, from 0; the noise depends on it.
    """

    parent: int
    kept: int
    typed: str
    typed_ids: tuple[int, ...]
    decoder: Decoder
    seed: int
    max_new_tokens: int
    heal: str = ""
    number: int = 0

    @property
    def ahead(self) -> str:
        """The typed text without the end that the model spells again."""
        return self.typed[: max(0, len(self.typed) - len(self.heal))]
