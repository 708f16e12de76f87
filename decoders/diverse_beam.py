"""Diverse beam search (Vijayakumar et al. 2016, arXiv 1610.02424), with their Hamming diversity.

Groups of beams grow one after the other at each token; a token costs more the more often earlier groups have just
taken it. A group ranks its stories with what they paid; the groups' best ones are compared without it, so that the
story told is the likeliest that was found.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from tinystory.decoding import Chain, Event, Request, Search, Session, option
from tinystory.errors import UsageError
from tinystory_decoders.beam import Group, Hypothesis, follow


@dataclass(frozen=True)
class DiverseBeam(Search):
    """Follow groups of stories that avoid each other's words, and tell the best of all.

    Of several stories (`--num`) the first is the best one, the second the best of another group, and so on.
    """

    name = "diverse-beam"
    example = "diverse-beam 6 groups=3"
    needs_reorder = True
    width: int = option(4, ge=1, le=100, help="how many stories are followed, in all groups together")
    groups: int = option(2, ge=1, le=100, help="how many groups they form; must divide the width")
    penalty: float = option(0.5, ge=0, le=1000, help="nats a token costs for each earlier group's story that took it")
    length_penalty: float = option(
        1.0, ge=-10, le=10, help="a story's log-probability is divided by its length to this power"
    )
    early_stopping: bool = option(False, help="a group ends as soon as all its places are taken by ended stories")

    def __post_init__(self) -> None:
        """Check the options; raises UsageError."""
        super().__post_init__()
        if self.width % self.groups:
            raise UsageError(f"{self.name}: {self.groups} groups cannot share a width of {self.width} equally")

    def search(self, session: Session, request: Request, chain: Chain) -> Iterator[Event]:
        """Yield the story's events; see `Search.search`."""
        root = Hypothesis(request.prompt_ids, (), chain.start(request))
        width = self.width // self.groups
        groups = [Group(root, width, self.length_penalty, self.early_stopping) for _ in range(self.groups)]
        return follow(session, request, chain, groups, self.penalty)
