"""Best of n: write several stories with different noise and keep the story with the best score.

Stories of one seed differ in their noise, and so they differ in quality. This search writes n of them side by side in
one batch and keeps the one with the best score. While the result is open, the story that leads is shown as a draft.
It costs n stories. It finds the best story by the score, and a reader may choose another one.
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
    Telling,
    Token,
    option,
    run,
    shared_length,
)

Worth = tuple[float, float]
"""The score of a story, and its mean log-probability, which decides between equal scores."""


@dataclass(frozen=True)
class BestOf(Search):
    """Write n stories at once, each with its own noise, and keep the one with the best score.

    `mean-logprob` prefers likely tokens. `typical` prefers stories that are as surprising as the model expects (Meister
    et al. 2022, arXiv 2202.00666). `distinct` prefers stories that seldom repeat a pair of tokens, and `repeats` those
    that seldom repeat four tokens in a row; these two favour short stories. Candidate i of branch s has the noise of
    branch s · n + i, so `best-of 4` chooses among the stories that `--num 4` writes.
    """

    name = "best-of"
    takes_sampler = True
    n: int = option(4, ge=1, le=100, instead="leave the stage out", help="how many stories are written")
    score: str = option(
        "mean-logprob", choices=("mean-logprob", "typical", "distinct", "repeats"), help="the figure that must be best"
    )

    def search(self, session: Session, request: Request, chain: Chain) -> Iterator[Event]:
        """Yield the events of the story; see `Search.search`.

        The tokens with which all candidates begin are committed. The rest of the story that leads now is a draft. So
        stop texts are searched in the story that is written, and not in the other candidates.
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
        scores = [score for score, _ in worths if score > -math.inf] or [0.0]
        statistics = {"candidates": float(self.n), "score": max(scores), "spread": max(scores) - min(scores)}
        yield Finish(reason or reasons[leader], statistics)

    def worth(self, story: Sequence[Token]) -> Worth:
        """Return the figures that compare stories. Larger is better; a story without a token is worth least."""
        if not story:
            return -math.inf, -math.inf
        logprob = sum(token.logprob for token in story) / len(story)
        if self.score == "typical":
            surprise = -logprob / math.log(2)
            return -abs(surprise - sum(token.entropy for token in story) / len(story)), logprob
        if self.score == "mean-logprob":
            return logprob, logprob
        return _share_of_new_ngrams([token.id for token in story], 2 if self.score == "distinct" else 4), logprob


def _share_of_new_ngrams(token_ids: Sequence[int], n: int) -> float:
    """Return the share of different n-grams among all n-grams, 0 to 1; 0 if there is no n-gram."""
    ngrams = [tuple(token_ids[i : i + n]) for i in range(len(token_ids) - n + 1)]
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0
