"""The work of a study, piece by piece: stories are written, real ones scored and held against each decoder.

Every piece is a record of the journal as soon as it is done, and none is done twice.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from tinystory.decoding import Decoder, Request, Session
from tinystory.errors import TinystoryError
from tinystory.story.tracing import story_logits, whatif
from tinystory.study.excerpts import Excerpt
from tinystory.study.journal import Journal
from tinystory.text.sentences import whole_sentences
from tinystory.text.tokenizer import Tokenizer
from tinystory.writing.generate import Ended, StoryRequest, write

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Plan", "collect"]

_ROWS_TOGETHER = 32
"""Stories of one batch, at most: the fastest size measured on a CPU. A search runs alone, so fewer are lost."""
_SEARCHES_TOGETHER = 4

Progress = Callable[[int, int, str], None]
"""Takes the pieces done, the pieces in all and what is being done."""


@dataclass(frozen=True)
class Plan:
    """What a study writes.

    Attributes:
        prompts: a story is written for each; they may be empty. A prompt's place among them is its story's number,
            so that no two share their luck, and all decoders have the same.
        decoders: by canonical spec.
        seeds: of the chains; every seed gives a group of stories.
        n_search_seeds: how many of the seeds the searches write with; they are slow, and mostly take no seed.
        max_tokens: of a story.
    """

    prompts: tuple[str, ...]
    decoders: Mapping[str, Decoder]
    seeds: tuple[int, ...]
    n_search_seeds: int
    max_tokens: int

    def seeds_of(self, spec: str) -> tuple[int, ...]:
        """What a decoder writes with."""
        return self.seeds[: self.n_search_seeds] if self.decoders[spec].search else self.seeds


@dataclass(frozen=True)
class _Batch:
    """Some prompts of one decoder and seed."""

    spec: str
    seed: int
    first: int
    stop: int

    @property
    def key(self) -> tuple[object, ...]:
        return self.spec, self.seed, self.first, self.stop


def collect(
    session: Session,
    tokenizer: Tokenizer,
    plan: Plan,
    real: Sequence[Sequence[Excerpt]],
    journal: Journal,
    progress: Progress = lambda _done, _total, _label: None,
) -> dict[str, str]:
    """Do what the journal does not have yet.

    Records are of three kinds: `real`, the surprise of a group of real excerpts in bits; `stories`, what a decoder
    wrote for some prompts; `coverage`, how many tokens of a real excerpt each decoder makes impossible.

    Args:
        session: its rows are replaced.
        tokenizer: the model's.
        plan: what is written.
        real: groups of real excerpts; coverage is taken over the first.
        journal: gets the records.
        progress: called before each piece and at the end.

    Returns:
        The decoders that failed, each with the reason; they have stories missing.
    """
    failed: dict[str, str] = {}
    work = [
        *_scoring(session, tokenizer, real, journal),
        *_writing(session, tokenizer, plan, journal, failed),
        *_covering(session, tokenizer, plan, real[0], journal),
    ]
    for done, (label, piece) in enumerate(work):
        progress(done, len(work), label)
        record = piece()
        if record:
            journal.add(record)
    progress(len(work), len(work), "")
    return failed


_Piece = tuple[str, Callable[[], dict[str, Any] | None]]
"""What is being done, and the function that does it."""


def _scoring(
    session: Session, tokenizer: Tokenizer, real: Sequence[Sequence[Excerpt]], journal: Journal
) -> Iterator[_Piece]:
    known = {record["group"] for record in journal.records if record["kind"] == "real"}

    def score(group: int) -> dict[str, Any]:
        bits = [_surprise(session, tokenizer, excerpt) for excerpt in real[group]]
        return {"kind": "real", "group": group, "bits": bits}

    for group in range(len(real)):
        if group not in known:
            yield "real stories", partial(score, group)


def _writing(
    session: Session, tokenizer: Tokenizer, plan: Plan, journal: Journal, failed: dict[str, str]
) -> Iterator[_Piece]:
    known = {
        (record["spec"], record["seed"], record["first"], record["first"] + len(record["stories"]))
        for record in journal.records
        if record["kind"] == "stories"
    }
    for batch in _batches(plan):
        if batch.key not in known:
            yield batch.spec, partial(_written, session, tokenizer, plan, batch, failed)


def _batches(plan: Plan) -> Iterator[_Batch]:
    """Equal pieces of the prompts, the same ones whatever is done already."""
    for spec, decoder in plan.decoders.items():
        n_prompts = len(plan.prompts)
        n_batches = math.ceil(n_prompts / (_SEARCHES_TOGETHER if decoder.search else _ROWS_TOGETHER))
        edges = [index * n_prompts // n_batches for index in range(n_batches + 1)]
        for seed in plan.seeds_of(spec):
            for first, stop in pairwise(edges):
                yield _Batch(spec, seed, first, stop)


def _written(
    session: Session, tokenizer: Tokenizer, plan: Plan, batch: _Batch, failed: dict[str, str]
) -> dict[str, Any] | None:
    if batch.spec in failed:
        return None
    decoder, numbers = plan.decoders[batch.spec], range(batch.first, batch.stop)
    requests = [
        StoryRequest(plan.prompts[number], decoder, seed=batch.seed, max_new_tokens=plan.max_tokens, number=number)
        for number in numbers
    ]
    started = time.process_time()
    try:
        ended = [event for event in write(session, tokenizer, requests) if isinstance(event, Ended)]
    except TinystoryError as error:
        failed[batch.spec] = str(error)
        return None
    seconds = time.process_time() - started
    stories = [event.result for event in sorted(ended, key=lambda event: event.story)]
    return {
        "kind": "stories",
        "spec": batch.spec,
        "seed": batch.seed,
        "first": batch.first,
        "cpu_seconds": round(seconds, 4),
        "stories": [
            {
                "completion": story.completion,
                "bits": [round(-token.logprob / math.log(2), 4) for token in story.tokens],
                "finish_reason": story.finish_reason,
            }
            for story in stories
        ],
    }


def _covering(
    session: Session, tokenizer: Tokenizer, plan: Plan, excerpts: Sequence[Excerpt], journal: Journal
) -> Iterator[_Piece]:
    known: dict[int, set[str]] = {}
    for record in journal.records:
        if record["kind"] == "coverage":
            known.setdefault(record["story"], set()).update(record["impossible"])
    chains = [spec for spec, decoder in plan.decoders.items() if decoder.search is None]
    for number, excerpt in enumerate(excerpts):
        missing = [spec for spec in chains if spec not in known.get(number, ())]
        if missing:
            yield "what is impossible", partial(_covered, session, tokenizer, plan, missing, number, excerpt)


def _covered(
    session: Session, tokenizer: Tokenizer, plan: Plan, specs: Sequence[str], number: int, excerpt: Excerpt
) -> dict[str, Any]:
    # A real story's end is a token that a decoder may forbid like any other.
    end = (min(session.eos_ids),) if excerpt.finished and session.eos_ids else ()
    token_ids = (*excerpt.prompt_ids, *excerpt.token_ids, *end)
    logits = _logits(session, tokenizer, token_ids, len(excerpt.prompt_ids))
    request = Request(excerpt.prompt_ids, len(excerpt.token_ids) + 1, plan.seeds[0], story=number)
    impossible: dict[str, tuple[int, int] | None] = {}
    for spec in specs:
        try:
            verdict = whatif(plan.decoders[spec], request, token_ids, logits, eos_ids=session.eos_ids)
        except TinystoryError:  # what fails here has failed while it wrote, or cannot be looked back at
            impossible[spec] = None
        else:
            # A sampler that does not tell its probabilities may forbid more than its processors do.
            told = verdict.bits_per_token is not None
            impossible[spec] = (len(verdict.forbidden), verdict.n_tokens) if told else None
    return {"kind": "coverage", "story": number, "impossible": impossible}


def _surprise(session: Session, tokenizer: Tokenizer, excerpt: Excerpt) -> list[float]:
    """Of each token, in bits."""
    import torch

    token_ids = (*excerpt.prompt_ids, *excerpt.token_ids)
    logits = _logits(session, tokenizer, token_ids, len(excerpt.prompt_ids))
    nats = -logits.log_softmax(dim=-1)[torch.arange(len(logits)), list(excerpt.token_ids)]
    return [round(bits, 4) for bits in (nats / math.log(2)).tolist()]


def _logits(session: Session, tokenizer: Tokenizer, token_ids: Sequence[int], n_prompt: int) -> "Tensor":
    return story_logits(session, token_ids, partial(whole_sentences, tokenizer), n_prompt)
