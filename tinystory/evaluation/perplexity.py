"""Measure how well a model predicts stories: perplexity, bits per byte and next-token accuracy.

Knows sessions and tokenizers. Does not know who shows the figures.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tinystory.decoding import Session
from tinystory.errors import TinystoryError, UsageError
from tinystory.model.cross_entropy import IGNORE
from tinystory.text.tokenizer import Tokenizer

__all__ = ["Evaluation", "ScoredWindow", "evaluate", "nats_of_windows", "unspelled", "window_batches", "windows"]

T = TypeVar("T")

_STORIES_AT_ONCE = 1024
"""Stories that are sorted by length together; this limits the memory for a file of any size."""

_LOGITS_AT_ONCE = 2**23
"""Largest size of a (B, T, V) block of logits, roughly; 32 MiB in float32."""


@dataclass(frozen=True)
class Evaluation:
    """The figures of a model on some stories.

    Attributes:
        bits_per_byte: the surprise of the model divided by the UTF-8 bytes of the stories; it compares models with
            different vocabularies. None if the vocabulary cannot spell the stories.
        nats_per_token: mean negative log-likelihood of a token, with the ends of the stories.
        perplexity: the exponential of nats_per_token; it compares only models with the same vocabulary.
        accuracy: share of tokens for which the model's most likely token is right, from 0 to 1.
        tokens: number of scored tokens; BOS is not scored.
        bytes: UTF-8 bytes of the scored text.
        stories: number of stories.
        unknown_tokens: how many of the tokens stand for text that the vocabulary cannot spell, at least.
    """

    bits_per_byte: float | None
    nats_per_token: float
    perplexity: float
    accuracy: float
    tokens: int
    bytes: int
    stories: int
    unknown_tokens: int


@dataclass(frozen=True)
class ScoredWindow:
    """A part of a story that the model sees at once.

    Attributes:
        token_ids: at most max_seq_len + 1 tokens; all except the last go into the model.
        n_scored: how many of the last tokens are scored; the others are only context.
    """

    token_ids: Sequence[int]
    n_scored: int


def windows(token_ids: Sequence[int], max_seq_len: int, n_before: int = 1) -> list[ScoredWindow]:
    """Divide a story into windows in which every token after the special ones is scored exactly once.

    A story that fits the context is one window. Each further window keeps the special tokens before the text, as
    generation does when the context is full, and half a context of earlier tokens, so that no token is scored with
    fewer.

    Args:
        token_ids: the story with BOS, or with all that stands before its text.
        max_seq_len: longest context of the model, in tokens.
        n_before: the number of tokens before the text, from 1 to half a context.
    """
    first = token_ids[: max_seq_len + 1]
    parts = [ScoredWindow(first, len(first) - n_before)]
    half = max_seq_len // 2
    step = max_seq_len + 1 - half - n_before
    for start in range(max_seq_len + 1, len(token_ids), step):
        seen = [*token_ids[:n_before], *token_ids[start - half : start + step]]
        parts.append(ScoredWindow(seen, len(seen) - n_before - half))
    return parts


def evaluate(
    session: Session,
    tokenizer: Tokenizer,
    stories: Iterable[str],
    *,
    limit: int | None = None,
    cut: bool = False,
    batch_tokens: int = 2048,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Score stories, each from BOS to its end.

    The end is the EOS token of the vocabulary (the one with the lowest id, as in training); without EOS, no end is
    scored. A story that is longer than the context is scored through `windows`.

    Args:
        session: computes the logits; its rows are replaced.
        tokenizer: the tokenizer of the model.
        stories: the texts; empty ones are left out.
        limit: score only the first `limit` stories.
        cut: score only the part of a story that fits the context, as published figures often do, and count only the
            bytes of this part.
        batch_tokens: positions that are computed together, with padding; the result does not depend on it.
        progress: called with the number of stories that are done.

    Raises:
        UsageError: there is no story, the vocabulary has no BOS, or the limit is below 1.
        TinystoryError: the predictions of the model are not finite.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"the limit is {limit}; it must be at least 1")
    if tokenizer.bos_id is None:
        raise UsageError("this vocabulary has no BOS token, so the first token of a story cannot be scored")
    texts = islice(filter(None, stories), limit)
    nats, n_right, n_tokens, n_bytes, n_stories, n_unknown = 0.0, 0, 0, 0, 0, 0
    while chunk := list(islice(texts, _STORIES_AT_ONCE)):
        pending, chunk_bytes = _windows_of(chunk, tokenizer, session.max_seq_len, cut)
        n_bytes += chunk_bytes
        n_left = len(pending)
        for batch in window_batches(pending, batch_tokens, lambda window: len(window.token_ids)):
            batch_nats, batch_right = _score(session, batch)
            nats, n_right = nats + batch_nats, n_right + batch_right
            n_left -= len(batch)
            if progress:  # nearly every story is one window
                progress(n_stories + max(0, len(chunk) - n_left))
        n_unknown += tokenizer.n_unknown(_scored(window) for window in pending)
        n_tokens += sum(window.n_scored for window in pending)
        n_stories += len(chunk)
    if not n_tokens:
        raise UsageError("there is no story to score")
    nats_per_token = nats / n_tokens
    if not nats_per_token < 700:  # exp would overflow; also refuses NaN
        raise TinystoryError("the predictions of the model are not finite; its weights may not suit this dtype")
    return Evaluation(
        bits_per_byte=None if n_unknown else nats / math.log(2) / n_bytes,
        nats_per_token=nats_per_token,
        perplexity=math.exp(nats_per_token),
        accuracy=n_right / n_tokens,
        tokens=n_tokens,
        bytes=n_bytes,
        stories=n_stories,
        unknown_tokens=n_unknown,
    )


def unspelled(evaluation: Evaluation) -> str:
    """Say that the vocabulary cannot spell the stories, and how many tokens show it."""
    return f"the vocabulary cannot spell all stories ({evaluation.unknown_tokens:,} unknown tokens)"


def _windows_of(
    texts: Sequence[str], tokenizer: Tokenizer, max_seq_len: int, cut: bool
) -> tuple[list[ScoredWindow], int]:
    """Return the windows of some texts, and the UTF-8 bytes of the text in them."""
    before = tokenizer.before_story[: max(1, max_seq_len // 2)]
    end = [min(tokenizer.eos_ids)] if tokenizer.eos_ids else []
    all_windows, n_bytes = [], 0
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        story = windows([*before, *ids, *end], max_seq_len, len(before))
        whole = not cut or len(story) == 1
        all_windows += story if whole else story[:1]
        n_bytes += len((text if whole else tokenizer.detokenize(ids[: max_seq_len + 1 - len(before)])).encode())
    return all_windows, n_bytes


def _scored(window: ScoredWindow) -> Sequence[int]:
    return window.token_ids[len(window.token_ids) - window.n_scored :]


def window_batches(pending: Sequence[T], batch_tokens: int, length: Callable[[T], int]) -> Iterator[list[T]]:
    """Yield windows of similar length together, the longest first, so that a lack of memory shows at once.

    Args:
        pending: the windows, or items that have one.
        batch_tokens: the most positions of a batch, with padding; a longer window stands alone.
        length: gives the number of tokens of an item's window.
    """
    left = sorted(pending, key=length, reverse=True)
    while left:
        n = max(1, batch_tokens // length(left[0]))
        yield left[:n]
        left = left[n:]


def nats_of_windows(session: Session, batch: Sequence[ScoredWindow]) -> list[float]:
    """Return the sum of the surprise of each window's scored tokens, in nats. The rows of the session are replaced."""
    totals: list[float] = _score_rows(session, batch)[0].tolist()
    return totals


def _score(session: Session, batch: Sequence[ScoredWindow]) -> tuple[float, int]:
    """Return the nats of a batch's scored tokens, and for how many of them the most likely token is right."""
    nats, n_right = _score_rows(session, batch)
    return nats.sum().item(), n_right


def _score_rows(session: Session, batch: Sequence[ScoredWindow]) -> tuple[Tensor, int]:
    """Return the nats of the scored tokens of each row, (B,) float64, and the number of right tokens in all rows."""
    width = max(len(window.token_ids) for window in batch)
    token_ids = torch.zeros((len(batch), width), dtype=torch.long)
    labels = torch.full((len(batch), width), IGNORE)
    for row, window in enumerate(batch):
        n = len(window.token_ids)
        token_ids[row, :n] = torch.tensor(window.token_ids)
        labels[row, n - window.n_scored : n] = token_ids[row, n - window.n_scored : n]
    inputs, labels = token_ids[:, :-1], labels[:, 1:]
    # Only decode gives logits for more than one position, so prefill takes the first token alone.
    nats, n_right = _tally(session.prefill(inputs[:, :1].tolist())[:, None], labels[:, :1])
    step = max(1, _LOGITS_AT_ONCE // (len(batch) * session.vocab_size))
    for start in range(1, width - 1, step):
        logits = session.decode(inputs[:, start : start + step])
        more, right = _tally(logits, labels[:, start : start + step])
        nats, n_right = nats + more, n_right + right
    return nats, n_right


def _tally(logits: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    """Return the sum of surprise of each row in nats, (B,) float64, and the number of right tokens of (B, T, V) logits.

    A position whose label in (B, T) is `IGNORE` does not count.
    """
    labels = labels.to(logits.device)
    surprise = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="none")
    return surprise.cpu().double().view(labels.shape).sum(dim=1), int((logits.argmax(dim=-1) == labels).sum())
