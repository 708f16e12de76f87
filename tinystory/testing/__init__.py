"""Tests for authors of decoders: the conformance kit, and a session without weights.

    from tinystory.testing import conformance

    def test_it_keeps_the_contract():
        assert not conformance(MyProcessor(0.5))

This room knows the decoder contract and no real model. Importing it does not import torch.
"""

from tinystory.testing.findings import Check, Problem
from tinystory.testing.kit import conformance, examine
from tinystory.testing.toy_session import Call, ToySession, ToyVocabulary

__all__ = [  # noqa: RUF022 (the groups are worth more than the alphabet)
    # The conformance kit, and what it returns: `conformance` gives Problems, `examine` gives Checks.
    "conformance",
    "examine",
    "Check",
    "Problem",
    # A model without weights and its tokens as text. The session keeps a list of Calls.
    "ToySession",
    "ToyVocabulary",
    "Call",
]
