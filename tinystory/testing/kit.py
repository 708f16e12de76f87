"""The conformance kit: checks that every decoder stage has to pass. It knows no concrete decoder and no real model."""

from collections.abc import Callable, Sequence

from tinystory.decoding import Decoder, LogitsProcessor, Sampler, Search, Stage
from tinystory.testing.calls import PlainDraw, check_stages
from tinystory.testing.findings import Check, Findings, Problem
from tinystory.testing.stories import check_stories
from tinystory.testing.toy_session import ToySession

__all__ = ["conformance", "examine"]


def conformance(
    subject: Stage | Decoder,
    *,
    vocab_sizes: Sequence[int] = (1, 2, 7, 32),
    session: Callable[..., ToySession] = ToySession,
    max_new_tokens: int | None = None,
) -> list[Problem]:
    """Check a stage, or a whole decoder, against the decoder contract.

    Processors and samplers are called with logits that are random, tied, removed (−inf) and extreme (±1e4), in several
    sizes. Then whole stories are written on toy sessions, with every way in which a story can end.

    Args:
        subject: an instance whose options have an effect.
        vocab_sizes: the sizes V of the logits for single calls.
        session: makes the sessions for whole stories. It is called with keyword arguments of ToySession.
        max_new_tokens: the length of ordinary stories, at most 240. None means 12, or more if a search refuses 12.

    Returns:
        The problems, the first one of each check; an empty list if there are none.
    """
    return list(_findings(subject, vocab_sizes, session, max_new_tokens).problems.values())


def examine(
    subject: Stage | Decoder,
    *,
    vocab_sizes: Sequence[int] = (1, 2, 7, 32),
    session: Callable[..., ToySession] = ToySession,
    max_new_tokens: int | None = None,
) -> list[Check]:
    """Return the result of every check, with the same arguments as `conformance`."""
    return _findings(subject, vocab_sizes, session, max_new_tokens).checks()


def _findings(
    subject: Stage | Decoder,
    vocab_sizes: Sequence[int],
    session: Callable[..., ToySession],
    max_new_tokens: int | None,
) -> Findings:
    findings = Findings()
    decoder = subject if isinstance(subject, Decoder) else _decoder_with(subject)
    check_stages(decoder, vocab_sizes, findings)
    if not findings.problems:  # a stage that fails alone fails in every story, too
        check_stories(decoder, session, max_new_tokens, findings)
    return findings


def _decoder_with(stage: Stage) -> Decoder:
    """Return a whole decoder with this stage."""
    if isinstance(stage, Search):
        return Decoder((), PlainDraw() if stage.takes_sampler else None, stage)
    if isinstance(stage, Sampler):
        return Decoder((), stage)
    if isinstance(stage, LogitsProcessor):
        return Decoder((stage,), PlainDraw())
    raise TypeError(f"{stage!r} is not a LogitsProcessor, Sampler or Search")
