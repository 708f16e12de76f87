"""Diverse beam search (Vijayakumar et al. 2016, arXiv 1610.02424), with the Hamming diversity of the paper.

Groups of beams grow one after the other at each token. A token costs more for each story of an earlier group that has
just taken it. An EOS counts like any other token, as in the paper; in transformers 4.49 it did not. A group ranks its
own stories with this penalty. The best stories of the groups are compared without it, so the result is the likeliest
story that was found.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from tinystory.decoding import Chain, Event, Request, Search, Session, option
from tinystory.errors import UsageError
from tinystory_decoders.beam import Group, Hypothesis, follow


@dataclass(frozen=True)
class DiverseBeam(Search):
    """Follow groups of stories that avoid each other's tokens, and write the best story of all groups.

    With several branches (`--num`), the first branch is the best story, the second branch is the best story of another
    group, and so on.
    """

    name = "diverse-beam"
    example = "diverse-beam 6 groups=3"
    needs_reorder = True
    width: int = option(
        4, ge=1, le=100, instead="leave the stage out", help="how many stories are followed, in all groups together"
    )
    groups: int = option(2, ge=1, le=100, help="the number of groups; it must divide the width")
    penalty: float = option(
        0.5, ge=0, le=1000, help="nats that a token costs for each story of an earlier group that took it"
    )
    length_penalty: float = option(
        1.0, ge=-10, le=10, help="the log-probability is divided by the length to this power"
    )
    early_stopping: bool = option(
        False, help="a group stops when as many stories have ended as it follows, even if a better one may come"
    )

    def __post_init__(self) -> None:
        """Check the options. Raise UsageError if one is wrong."""
        super().__post_init__()
        if self.width % self.groups:
            raise UsageError(
                f"{self.name}: a width of {self.width} cannot be divided among {self.groups} groups equally"
            )

    def search(self, session: Session, request: Request, chain: Chain) -> Iterator[Event]:
        """Yield the events of the story; see `Search.search`."""
        root = Hypothesis(request.prompt_ids, (), chain.start(request))
        width = self.width // self.groups
        groups = [Group(root, width, self.length_penalty, self.early_stopping) for _ in range(self.groups)]
        return follow(session, request, chain, groups, self.penalty)
