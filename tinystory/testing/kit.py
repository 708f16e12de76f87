"""For authors of decoders: checks that any stage has to pass, and a session without weights to try it on.

from tinystory.testing import conformance

def test_conformance():
    assert not conformance(MyProcessor(0.5))
"""

from collections.abc import Callable, Sequence

from tinystory.decoding import Decoder, LogitsProcessor, Sampler, Search, Stage
from tinystory.testing.calls import PlainDraw, check_stages
from tinystory.testing.findings import Check, Findings, Problem
from tinystory.testing.stories import check_stories
from tinystory.testing.toy_session import Call, ToySession, ToyVocabulary

__all__ = ["Call", "Check", "Problem", "ToySession", "ToyVocabulary", "conformance", "examine"]


def conformance(
    subject: Stage | Decoder,
    *,
    vocab_sizes: Sequence[int] = (1, 2, 7, 32),
    session: Callable[..., ToySession] = ToySession,
    max_new_tokens: int | None = None,
) -> list[Problem]:
    """Check a stage, or a whole decoder, against the decoder contract.

    A processor is called on logits that are random, tied, removed (−inf), extreme (±1e4) and of several sizes, a
    sampler likewise; then whole stories are written on toy sessions, with every way for a story to end.

    Args:
        subject: an instance, its options set to something that bites.
        vocab_sizes: sizes V of the logits that single stages are called with.
        session: makes the sessions for whole stories; called with keyword arguments of ToySession.
        max_new_tokens: of ordinary stories, at most 240; None for 12, or more where a search refuses so few.

    Returns:
        What is wrong, the first instance of each kind; empty when nothing is.
    """
    return list(_findings(subject, vocab_sizes, session, max_new_tokens).problems.values())


def examine(
    subject: Stage | Decoder,
    *,
    vocab_sizes: Sequence[int] = (1, 2, 7, 32),
    session: Callable[..., ToySession] = ToySession,
    max_new_tokens: int | None = None,
) -> list[Check]:
    """The same as `conformance`, as a list of every check and how it went."""
    return _findings(subject, vocab_sizes, session, max_new_tokens).checks()


def _findings(
    subject: Stage | Decoder,
    vocab_sizes: Sequence[int],
    session: Callable[..., ToySession],
    max_new_tokens: int | None,
) -> Findings:
    findings = Findings()
    decoder = subject if isinstance(subject, Decoder) else _around(subject)
    check_stages(decoder, vocab_sizes, findings)
    if not findings.problems:  # a stage that fails alone fails in every story too
        check_stories(decoder, session, max_new_tokens, findings)
    return findings


def _around(stage: Stage) -> Decoder:
    """A whole decoder around one stage."""
    if isinstance(stage, Search):
        return Decoder((), PlainDraw() if stage.takes_sampler else None, stage)
    if isinstance(stage, Sampler):
        return Decoder((), stage)
    if isinstance(stage, LogitsProcessor):
        return Decoder((stage,), PlainDraw())
    raise TypeError(f"{stage!r} is not a LogitsProcessor, Sampler or Search")
