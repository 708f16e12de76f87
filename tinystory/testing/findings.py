"""The checks of the conformance kit, and their results."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["CHECKS", "Check", "Findings", "Problem"]

CHECKS: Mapping[str, str] = {
    "declaration": "the class can be loaded as a plug-in",
    "docstring": "the class says what it does",
    "neutral value": "the neutral value is allowed and switches the stage off",
    "call": "it accepts logits of every kind and size",
    "output": "a processor returns logits like those it got, a sampler returns a token id",
    "purity": "it does not change its arguments",
    "determinism": "the same call or the same seed gives the same result",
    "finite or −inf": "it returns no NaN and no +inf",
    "support": "at least one token stays, and a removed token stays removed",
    "older state": "from an older state it continues in the same way",
    "spec": "the printed spec reads back as the same decoder",
    "story": "it writes whole stories",
    "events": "a story is Commits and Drafts, then one Finish",
    "tokens": "committed tokens exist, and none of them is an EOS",
    "logprob": "committed tokens carry the model's own log-probability",
    "max_new_tokens": "a story has no more new tokens than the limit",
    "stop": "a stop ends the story within one step",
    "cancel": "a cancel ends the story within one step",
    "early close": "a story can be left in the middle",
    "together": "a story is the same alone and in a batch",
}
"""The checks in the order of the report. Each text says what is true if the check passes."""


@dataclass(frozen=True)
class Problem:
    """A rule of the decoder contract that a stage breaks."""

    check: str
    detail: str

    def __str__(self) -> str:
        return f"{self.check}: {self.detail}"


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: a key of `CHECKS`.
        outcome: "not run" means that there was nothing to check, or that the kit stopped after an earlier failure.
        detail: the failure; for the other outcomes, the text of `CHECKS`.
    """

    name: str
    outcome: Literal["ok", "failed", "not run"]
    detail: str


class Findings:
    """The names of the checks that ran, and the first problem of each.

    Attributes:
        ran: the names of the checks that ran.
        problems: the first problem of each failed check, by its name.
    """

    def __init__(self) -> None:
        self.ran: set[str] = set()
        self.problems: dict[str, Problem] = {}

    def expect(self, holds: bool, check: str, detail: str) -> bool:
        """Note that a check ran. If it does not hold, note the problem. Return `holds`.

        Raises:
            KeyError: `check` is not a key of `CHECKS`.
        """
        if check not in CHECKS:
            raise KeyError(check)
        self.ran.add(check)
        if not holds:
            self.problems.setdefault(check, Problem(check, detail))
        return holds

    def checks(self) -> list[Check]:
        """Return the results of all checks, in the order of `CHECKS`."""
        return [
            Check(name, "failed", self.problems[name].detail)
            if name in self.problems
            else Check(name, "ok" if name in self.ran else "not run", meaning)
            for name, meaning in CHECKS.items()
        ]
