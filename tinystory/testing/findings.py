"""What the conformance kit looks at, and what it has found."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["CHECKS", "Check", "Findings", "Problem"]

CHECKS: Mapping[str, str] = {
    "declaration": "the class can be loaded as a plug-in",
    "docstring": "it says what it does",
    "neutral value": "its neutral value is allowed and switches it off",
    "call": "it takes logits of every kind and size",
    "output": "it gives what its kind gives: logits like those it got, or a token id",
    "purity": "it changes nothing that it is given",
    "determinism": "the same call, and the same seed, give the same",
    "finite or −inf": "it gives no NaN and no +inf",
    "support": "at least one token stays, and a removed one never returns",
    "older state": "from an older state it goes on as it did",
    "spec": "what is printed reads back as the same decoder",
    "story": "it writes whole stories",
    "events": "a story is Commits and Drafts, then one Finish",
    "tokens": "committed tokens exist, and an EOS is none of them",
    "logprob": "committed tokens carry the model's own log-probability",
    "max_new_tokens": "the limit holds",
    "stop": "a stop is heard within a step",
    "cancel": "a cancel is heard within a step",
    "early close": "a story may be dropped in the middle",
    "together": "a story comes out the same in a batch",
}
"""Every check, in the order of the report, and what holds where it passes."""


@dataclass(frozen=True)
class Problem:
    """A rule of the decoder contract that a stage breaks."""

    check: str
    detail: str

    def __str__(self) -> str:
        return f"{self.check}: {self.detail}"


@dataclass(frozen=True)
class Check:
    """One check and how it went.

    Attributes:
        name: a key of `CHECKS`.
        outcome: "not run" where there is nothing to check, or an earlier failure kept the kit from it.
        detail: what failed; else what the check stands for.
    """

    name: str
    outcome: Literal["ok", "failed", "not run"]
    detail: str


class Findings:
    """Keeps which checks ran, and the first problem of each."""

    def __init__(self) -> None:
        self.ran: set[str] = set()
        self.problems: dict[str, Problem] = {}

    def expect(self, holds: bool, check: str, detail: str) -> bool:
        """Note that a check ran, and what is wrong unless it holds; gives `holds` back."""
        if check not in CHECKS:
            raise KeyError(check)
        self.ran.add(check)
        if not holds:
            self.problems.setdefault(check, Problem(check, detail))
        return holds

    def checks(self) -> list[Check]:
        """How each check went."""
        return [
            Check(name, "failed", self.problems[name].detail)
            if name in self.problems
            else Check(name, "ok" if name in self.ran else "not run", meaning)
            for name, meaning in CHECKS.items()
        ]
