"""A person picks: the model only proposes.

The likeliest tokens are shown with their probabilities, after whatever processors stand before; a number, a text or
Enter takes one. No luck is used. It is the way to feel what a model leaves open and what it has decided long ago.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinystory.decoding import Request, Sampler, Step
from tinystory.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Human(Sampler):
    """You pick every token yourself, from those the model finds likeliest (in the chat)."""

    name = "human"
    repeatable = False

    def start(self, request: Request) -> object:
        """Whom to ask; nobody where a story is only looked back at."""
        return request.choose

    def __call__(self, logits: "Tensor", step: Step) -> int:
        """(V,) logits -> what the person takes.

        Raises:
            UsageError: nobody can be asked here.
        """
        if step.state is None:
            raise UsageError("human picks in the chat only, where somebody can be asked: tinystory chat -d human")
        return int(step.state(logits, step))
