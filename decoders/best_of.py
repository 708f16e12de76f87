"""Best of n: write several stories with different luck and tell the one with the best score.

Luck differs between stories of one seed, and so does their quality. So n of them are written side by side in one
batch, and the one with the best score is told; while it is open which that is, the one that leads is shown as a draft.
It costs n stories, and finds the best of the n by the score, which need not be what a reader would choose.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tinystory.decoding import (
    Chain,
    Commit,
    Decoder,
    Event,
    Finish,
    FinishReason,
    Request,
    Search,
    Session,
    Token,
    option,
)
from tinystory.decoding.loop import run
from tinystory.decoding.searching import Telling, shared_length

Worth = tuple[float, float]
"""A story's score, and its mean log-probability, which decides between equal scores."""


@dataclass(frozen=True)
class BestOf(Search):
    """Write n stories at once, each with luck of its own, and tell the best.

    `mean-logprob` wants the tokens likely, `typical` as surprising as the model expects (Meister et al. 2022, arXiv
    2202.00666), `distinct` few token pairs twice, `repeats` few runs of four tokens twice; the last two favour short
    stories. Candidate i of sibling s has the luck of sibling s · n + i, so `best-of 4` chooses among what `--num 4`
    writes.
    """

    name = "best-of"
    takes_sampler = True
    n: int = option(4, ge=1, le=100, help="how many stories are written")
    score: str = option(
        "mean-logprob", choices=("mean-logprob", "typical", "distinct", "repeats"), help="what makes a story the best"
    )

    def search(self, session: Session, request: Request, chain: Chain) -> Iterator[Event]:
        """Yield the story's events; see `Search.search`.

        What all candidates begin with is committed, the rest of the one that leads now is a draft. So stop texts are
        looked for in the story that is told, and not before it is.
        """
        decoder = Decoder(chain.processors, chain.sampler)
        numbers = range(request.story * self.n, (request.story + 1) * self.n)
        jobs = [(decoder, replace(request, story=number, stop=lambda: False)) for number in numbers]
        stories: list[list[Token]] = [[] for _ in jobs]
        worths: list[Worth] = [(-math.inf, -math.inf)] * self.n
        reasons: list[FinishReason] = ["cancelled"] * self.n
        telling, leader, reason = Telling(request), 0, None
        for index, event in run(session, jobs):
            if isinstance(event, Finish):
                reasons[index] = event.reason
            elif isinstance(event, Commit):
                stories[index] += event.tokens
                worths[index] = self.worth(stories[index])
                before, leader = leader, max(range(self.n), key=worths.__getitem__)
                if leader == index or leader != before:
                    reason = yield from telling.tell(stories[leader], shared_length(stories))
                    if reason:
                        break
        else:
            reason = yield from telling.tell(stories[leader], len(stories[leader]))
        found = [worth for worth, _ in worths if worth > -math.inf] or [0.0]
        statistics = {"candidates": float(self.n), "score": max(found), "spread": max(found) - min(found)}
        yield Finish(reason or reasons[leader], statistics)

    def worth(self, story: Sequence[Token]) -> Worth:
        """What is compared: the larger the better. A story without a token is worth least."""
        if not story:
            return -math.inf, -math.inf
        logprob = sum(token.logprob for token in story) / len(story)
        if self.score == "typical":
            surprise = -logprob / math.log(2)
            return -abs(surprise - sum(token.entropy for token in story) / len(story)), logprob
        if self.score == "mean-logprob":
            return logprob, logprob
        return _new_ngrams([token.id for token in story], 2 if self.score == "distinct" else 4), logprob


def _new_ngrams(token_ids: Sequence[int], n: int) -> float:
    """The share of different ones among the runs of n tokens; 0 where there is none."""
    ngrams = [tuple(token_ids[i : i + n]) for i in range(len(token_ids) - n + 1)]
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0
