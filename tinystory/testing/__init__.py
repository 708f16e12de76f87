"""For authors of decoders: the conformance kit, and a session without weights to try a decoder on.

from tinystory.testing import conformance

def test_conformance():
assert not conformance(MyProcessor(0.5))
"""

from tinystory.testing.findings import Check, Problem
from tinystory.testing.kit import conformance, examine
from tinystory.testing.toy_session import Call, ToySession, ToyVocabulary

__all__ = ["Call", "Check", "Problem", "ToySession", "ToyVocabulary", "conformance", "examine"]
