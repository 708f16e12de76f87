"""How well a model predicts stories: perplexity, bits per byte, next-token accuracy.

Knows sessions and tokenizers; whoever shows the figures is elsewhere.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor

from tinystory.decoding import Session
from tinystory.errors import TinystoryError, UsageError
from tinystory.model.cross_entropy import IGNORE
from tinystory.text.tokenizer import Tokenizer

__all__ = ["Evaluation", "ScoredWindow", "evaluate", "windows"]

_STORIES_AT_ONCE = 1024
"""Stories held and sorted by length together; bounds the memory for a file of any size."""

_LOGITS_AT_ONCE = 2**23
"""Numbers of a (B, T, V) block of logits, about; 32 MiB in float32."""


@dataclass(frozen=True)
class Evaluation:
    """What a model makes of some stories.

    Attributes:
        bits_per_byte: the model's surprise over the UTF-8 bytes of the stories; comparable across vocabularies.
        nats_per_token: mean negative log-likelihood of a token, the ends of the stories included.
        perplexity: exp of it; comparable only between models with one vocabulary.
        accuracy: share of the tokens that were the model's likeliest, from 0 to 1.
        tokens: scored tokens; BOS is not scored.
        bytes: UTF-8 bytes of the scored text.
        stories: how many stories.
    """

    bits_per_byte: float
    nats_per_token: float
    perplexity: float
    accuracy: float
    tokens: int
    bytes: int
    stories: int


@dataclass(frozen=True)
class ScoredWindow:
    """A stretch of a story that the model sees at once.

    Attributes:
        token_ids: at most max_seq_len + 1 of them; all but the last go into the model.
        n_scored: how many of the last ones are scored, the rest is history.
    """

    token_ids: Sequence[int]
    n_scored: int


def windows(token_ids: Sequence[int], max_seq_len: int) -> list[ScoredWindow]:
    """Windows of a story in which every token but the first is scored exactly once.

    A story within the context is one window. After that a window keeps the first token (BOS), as generation does
    when the context is full, and half a context of history, so that no token is scored with less.

    Args:
        token_ids: the story, BOS included.
        max_seq_len: tokens the model sees.
    """
    found = [ScoredWindow(token_ids[: max_seq_len + 1], min(len(token_ids) - 1, max_seq_len))]
    half = max_seq_len // 2
    step = max_seq_len - half
    for start in range(max_seq_len + 1, len(token_ids), step):
        seen = [token_ids[0], *token_ids[start - half : start + step]]
        found.append(ScoredWindow(seen, len(seen) - 1 - half))
    return found


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
    """Score stories, each one from BOS to its end.

    The end is the vocabulary's EOS (of several the lowest id, as in training); a vocabulary without one scores no
    end. A story longer than the context is scored through `windows`.

    Args:
        session: its rows are replaced.
        tokenizer: the model's.
        stories: the texts; empty ones are left out.
        limit: score only so many, the first ones.
        cut: score only what of a story fits into the context, as published figures often do, and count only the
            bytes of that.
        batch_tokens: positions computed together, padding included; the result does not depend on it.
        progress: called with the number of stories done so far.

    Raises:
        UsageError: no story, a vocabulary without BOS, or a limit below 1.
        TinystoryError: the model's predictions are not numbers.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"the limit is {limit}; it must be at least 1")
    if tokenizer.bos_id is None:
        raise UsageError("this vocabulary has no BOS token, so the first token of a story cannot be scored")
    end = [min(tokenizer.eos_ids)] if tokenizer.eos_ids else []
    texts = islice(filter(None, stories), limit)
    nats, n_right, n_tokens, n_bytes, n_stories = 0.0, 0, 0, 0, 0
    while chunk := list(islice(texts, _STORIES_AT_ONCE)):
        found: list[ScoredWindow] = []
        for text, ids in zip(chunk, tokenizer.encode_batch(chunk), strict=True):
            story = windows([tokenizer.bos_id, *ids, *end], session.max_seq_len)
            whole = not cut or len(story) == 1
            found.extend(story if whole else story[:1])
            n_bytes += len((text if whole else tokenizer.detokenize(ids[: session.max_seq_len])).encode())
        n_left = len(found)
        for batch in _batches(found, batch_tokens):
            batch_nats, batch_right = _score(session, batch)
            nats, n_right = nats + batch_nats, n_right + batch_right
            n_left -= len(batch)
            if progress:  # a window is a story but for the longest few
                progress(n_stories + max(0, len(chunk) - n_left))
        n_tokens += sum(window.n_scored for window in found)
        n_stories += len(chunk)
    if not n_tokens:
        raise UsageError("there is no story to score")
    nats_per_token = nats / n_tokens
    if not nats_per_token < 700:  # exp would overflow; NaN ends here too
        raise TinystoryError("the model's predictions are not numbers; its weights may not suit this dtype")
    return Evaluation(
        bits_per_byte=nats / math.log(2) / n_bytes,
        nats_per_token=nats_per_token,
        perplexity=math.exp(nats_per_token),
        accuracy=n_right / n_tokens,
        tokens=n_tokens,
        bytes=n_bytes,
        stories=n_stories,
    )


def _batches(found: Sequence[ScoredWindow], batch_tokens: int) -> Iterator[list[ScoredWindow]]:
    """Group windows of similar length, the longest first: what is too large for the memory shows at once."""
    left = sorted(found, key=lambda window: len(window.token_ids), reverse=True)
    while left:
        n = max(1, batch_tokens // len(left[0].token_ids))
        yield left[:n]
        left = left[n:]


def _score(session: Session, batch: Sequence[ScoredWindow]) -> tuple[float, int]:
    """Nats over the scored tokens of a batch, and how many of them were the likeliest."""
    width = max(len(window.token_ids) for window in batch)
    token_ids = torch.zeros((len(batch), width), dtype=torch.long)
    labels = torch.full((len(batch), width), IGNORE)
    for row, window in enumerate(batch):
        n = len(window.token_ids)
        token_ids[row, :n] = torch.tensor(window.token_ids)
        labels[row, n - window.n_scored : n] = token_ids[row, n - window.n_scored : n]
    inputs, labels = token_ids[:, :-1], labels[:, 1:]
    # Only decode gives the logits of more than one position, so prefill takes the first token alone.
    nats, n_right = _tally(session.prefill(inputs[:, :1].tolist())[:, None], labels[:, :1])
    step = max(1, _LOGITS_AT_ONCE // (len(batch) * session.vocab_size))
    for start in range(1, width - 1, step):
        logits = session.decode(inputs[:, start : start + step])
        more, right = _tally(logits, labels[:, start : start + step])
        nats, n_right = nats + more, n_right + right
    return nats, n_right


def _tally(logits: Tensor, labels: Tensor) -> tuple[float, int]:
    """Summed surprise in nats and hits of (B, T, V) logits, where (B, T) labels are not `IGNORE`."""
    logits, labels = logits.flatten(0, 1), labels.flatten().to(logits.device)
    surprise = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    return surprise.double().sum().item(), int((logits.argmax(dim=-1) == labels).sum())
