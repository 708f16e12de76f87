"""Do the work of a study, part by part: write stories, score real stories, and test them against each decoder.

Every part becomes a record of the journal when it is done, and no part is done twice. Knows the session and the
decoders. Does not know what is measured later.
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
"""The most stories of one batch: the fastest size that was measured on a CPU."""

_SEARCHES_TOGETHER = 4
"""The most stories of one batch of a search. It writes them one by one, so a stop loses fewer of a small batch."""

Progress = Callable[[int, int, str], None]
"""Takes the number of parts that are done, the number of all parts, and the name of the next one."""


@dataclass(frozen=True)
class Plan:
    """The stories that a study writes.

    Attributes:
        prompts: the prompts, which may be empty texts. The place of a prompt is the number of its story, so two prompts
            do not share their noise, and all decoders have the same noise for a prompt.
        decoders: the decoders by canonical spec.
        seeds: the seeds of chains; every seed gives a group of stories.
        n_search_seeds: how many of the seeds a search uses. Searches are slow, and most of them use no noise.
        max_tokens: most new tokens of a story.
    """

    prompts: tuple[str, ...]
    decoders: Mapping[str, Decoder]
    seeds: tuple[int, ...]
    n_search_seeds: int
    max_tokens: int

    def seeds_of(self, spec: str) -> tuple[int, ...]:
        """Return the seeds with which a decoder writes."""
        return self.seeds[: self.n_search_seeds] if self.decoders[spec].search else self.seeds


@dataclass(frozen=True)
class _Batch:
    """The prompts from `first` to before `stop`, for one decoder and seed."""

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
    """Do all work that the journal does not have yet.

    There are three kinds of records: `real` has the surprise of a group of real excerpts, in bits. `stories` has the
    stories of a decoder for some prompts. `coverage` has how many tokens of a real excerpt each decoder makes
    impossible.

    Args:
        session: computes the logits; its rows are replaced.
        tokenizer: the tokenizer of the model.
        plan: the stories to write.
        real: groups of real excerpts; coverage is taken over the first group.
        journal: gets the records.
        progress: called before each part and at the end.

    Returns:
        The decoders that failed, each with the reason; some of their stories are missing.
    """
    failed: dict[str, str] = {}
    work = [
        *_scoring(session, tokenizer, real, journal),
        *_writing(session, tokenizer, plan, journal, failed),
        *_covering(session, tokenizer, plan, real[0], journal),
    ]
    for n_done, (label, part) in enumerate(work):
        progress(n_done, len(work), label)
        record = part()
        if record:
            journal.add(record)
    progress(len(work), len(work), "")
    return failed


_Part = tuple[str, Callable[[], dict[str, Any] | None]]
"""A name for a part of the work, and the function that does it and returns its record."""


def _scoring(
    session: Session, tokenizer: Tokenizer, real: Sequence[Sequence[Excerpt]], journal: Journal
) -> Iterator[_Part]:
    done = {
        record["group"]
        for record in journal.records
        if record["kind"] == "real" and [len(record["bits"])] == [len(group) for group in real[record["group"] :][:1]]
    }

    def score(group: int) -> dict[str, Any]:
        bits = [_surprise(session, tokenizer, excerpt) for excerpt in real[group]]
        return {"kind": "real", "group": group, "bits": bits}

    for group in range(len(real)):
        if group not in done:
            yield "real stories", partial(score, group)


def _writing(
    session: Session, tokenizer: Tokenizer, plan: Plan, journal: Journal, failed: dict[str, str]
) -> Iterator[_Part]:
    done = {
        (record["spec"], record["seed"], record["first"], record["first"] + len(record["stories"]))
        for record in journal.records
        if record["kind"] == "stories"
    }
    for batch in _batches(plan):
        if batch.key not in done:
            yield batch.spec, partial(_written, session, tokenizer, plan, batch, failed)


def _batches(plan: Plan) -> Iterator[_Batch]:
    """Yield batches of about equal size. They do not depend on what is done already."""
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
) -> Iterator[_Part]:
    done: dict[int, set[str]] = {}
    for record in journal.records:
        if record["kind"] == "coverage":
            done.setdefault(record["story"], set()).update(record["impossible"])
    chains = [spec for spec, decoder in plan.decoders.items() if decoder.search is None]
    for number, excerpt in enumerate(excerpts):
        missing = [spec for spec in chains if spec not in done.get(number, ())]
        if missing:
            yield "impossible tokens", partial(_covered, session, tokenizer, plan, missing, number, excerpt)


def _covered(
    session: Session, tokenizer: Tokenizer, plan: Plan, specs: Sequence[str], number: int, excerpt: Excerpt
) -> dict[str, Any]:
    # A decoder may forbid the end of a real story, as it may forbid any other token.
    end = (min(session.eos_ids),) if excerpt.finished and session.eos_ids else ()
    token_ids = (*excerpt.prompt_ids, *excerpt.token_ids, *end)
    logits = _logits(session, tokenizer, token_ids, len(excerpt.prompt_ids))
    request = Request(excerpt.prompt_ids, len(excerpt.token_ids) + 1, plan.seeds[0], story=number)
    impossible: dict[str, tuple[int, int] | None] = {}
    for spec in specs:
        try:
            verdict = whatif(plan.decoders[spec], request, token_ids, logits, eos_ids=session.eos_ids)
        except TinystoryError:  # the decoder has failed while writing, too, or it cannot be tested in this way
            impossible[spec] = None
        else:
            # A sampler that does not show its probabilities may forbid more than its processors do.
            complete = verdict.bits_per_token is not None
            impossible[spec] = (len(verdict.forbidden), verdict.n_tokens) if complete else None
    return {"kind": "coverage", "story": number, "impossible": impossible}


def _surprise(session: Session, tokenizer: Tokenizer, excerpt: Excerpt) -> list[float]:
    """Return the surprise of each token of an excerpt, in bits."""
    import torch

    token_ids = (*excerpt.prompt_ids, *excerpt.token_ids)
    logits = _logits(session, tokenizer, token_ids, len(excerpt.prompt_ids))
    nats = -logits.log_softmax(dim=-1)[torch.arange(len(logits)), list(excerpt.token_ids)]
    return [round(bits, 4) for bits in (nats / math.log(2)).tolist()]


def _logits(session: Session, tokenizer: Tokenizer, token_ids: Sequence[int], n_prompt: int) -> "Tensor":
    return story_logits(session, token_ids, partial(whole_sentences, tokenizer), n_prompt)
