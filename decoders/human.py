"""A person picks: the model only proposes.

The likeliest tokens are shown with their probabilities, after the processors that stand before this stage. The user
picks one by its number, by a text, or by Enter. No noise is used. So you can see where the model leaves a choice open
and where it is certain.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinystory.decoding import Request, Sampler, Step
from tinystory.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Human(Sampler):
    """Let the user pick every token from a list of the likeliest ones. It works in the chat only."""

    name = "human"
    repeatable = False

    def start(self, request: Request) -> object:
        """Return the function that asks the user; None if nobody can be asked, for example in a replay."""
        return request.choose

    def __call__(self, logits: "Tensor", step: Step) -> int:
        """Return the id of the token that the user picks.

        Raises:
            UsageError: nobody can be asked.
        """
        if step.state is None:
            raise UsageError("human works in the chat only, because it asks for every token: tinystory chat -d human")
        return int(step.state(logits, step))
