"""A piece of writing that has been asked for: where it goes on from, what was typed, and what picks its tokens."""

from dataclasses import dataclass

from tinystory.decoding import Decoder

__all__ = ["TurnRequest"]


@dataclass(frozen=True, kw_only=True)
class TurnRequest:
    """A piece of writing that has been asked for and not begun.

    Attributes:
        parent: the turn it goes on from.
        kept: how many of that one's tokens it keeps.
        typed: what the writer adds.
        typed_ids: the tokens of that, without what is to be healed.
        heal: the end of what was typed, which the model's first tokens have to spell again.
        decoder: picks the tokens.
        seed: of its luck.
        number: among turns that are written at once; enters the luck.
        max_new_tokens: at most so many tokens.
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
        """What the writer adds, without what the model writes again."""
        return self.typed[: max(0, len(self.typed) - len(self.heal))]
