"""Beam search (Lowerre 1976, "The Harpy speech recognition system"; Graves 2012, arXiv 1211.3711).

The rules are those of transformers' `generate(num_beams=width, do_sample=False)`: the candidates, the ends of stories,
the length penalty, and the rule to stop. As in transformers, the processors receive log-probabilities, and the numbers
that they return are added up unchanged. So a temperature alone changes nothing, and the probabilities that a truncation
leaves do not have to sum to one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinystory.decoding import (
    Chain,
    ChainState,
    Event,
    Finish,
    FinishReason,
    Request,
    Rows,
    Search,
    Session,
    Step,
    Telling,
    Token,
    option,
    shared_length,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Beam(Search):
    """Follow the likeliest stories side by side and write the best of them.

    With several branches (`--num`), the first branch is the best story, the second branch the second best, and so on.
    """

    name = "beam"
    needs_reorder = True
    width: int = option(4, ge=1, le=100, instead="leave the stage out", help="how many stories are followed")
    length_penalty: float = option(
        1.0,
        ge=-10,
        le=10,
        help="the log-probability is divided by the length to this power: larger values favour long stories",
    )
    early_stopping: bool = option(
        False, help="stop as soon as `width` stories have ended, even if an unfinished one may become better"
    )

    def search(self, session: Session, request: Request, chain: Chain) -> Iterator[Event]:
        """Yield the events of the story; see `Search.search`."""
        root = Hypothesis(request.prompt_ids, (), chain.start(request))
        group = Group(root, self.width, self.length_penalty, self.early_stopping)
        return follow(session, request, chain, [group])


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A story that may become the result.

    Attributes:
        token_ids: the whole story, prompt included.
        tokens: its new tokens.
        state: the state of the chain after it.
        score: its log-probability in nats, as the processors leave it, minus `penalty`.
        penalty: the nats that it lost because it resembled other groups.
        reason: the finish reason; None for a story that goes on.
    """

    token_ids: tuple[int, ...]
    tokens: tuple[Token, ...]
    state: ChainState
    score: float = 0.0
    penalty: float = 0.0
    reason: FinishReason | None = None


class Group:
    """One beam: the stories that go on, likeliest first, and the best stories that have ended, best first.

    Attributes:
        width: the most stories of each kind.
        live: the stories that go on.
        ended: the stories that have ended.
        taken: the token ids that its stories took in this step; an EOS is one of them.
        first_row: the row of the session that holds the first live story. The others follow it.
        n_candidates: the number of continuations that were ranked.
        n_ended: the number of stories that have ended, also those that were not kept.
    """

    def __init__(self, root: Hypothesis, width: int, length_penalty: float, early_stopping: bool) -> None:
        self.width = width
        self._length_penalty = length_penalty
        self._early_stopping = early_stopping
        self.live = [root]
        self.ended: list[Hypothesis] = []
        self.taken: list[int] = []
        self.first_row = self.n_candidates = self.n_ended = 0

    def value(self, hypothesis: Hypothesis, refund: float = 0.0) -> float:
        """Return the figure that compares stories of different lengths. An EOS counts as a token."""
        n_picked = len(hypothesis.tokens) + (hypothesis.reason == "eos")
        return (hypothesis.score + refund) / float(max(1, n_picked) ** self._length_penalty)

    def value_without_penalty(self, hypothesis: Hypothesis) -> float:
        """Return the same figure without the penalty for resembling other groups."""
        return self.value(hypothesis, hypothesis.penalty)

    def ranking(self) -> list[Hypothesis]:
        """Return all stories of the group, the best first."""
        return sorted(self.ended + self.live, key=self.value, reverse=True)

    def grow(
        self, logits: "Tensor", request: Request, chain: Chain, eos_ids: frozenset[int], penalties: "Tensor"
    ) -> list[int]:
        """Make every live story longer by one token.

        Args:
            logits: the (B, V) logits of the session.
            request: the request. It gives max_new_tokens, and stages may ask it for more.
            chain: its processors are used.
            eos_ids: the tokens that end a story.
            penalties: (V,), the nats that each token costs besides its log-probability.

        Returns:
            For each new live story, the row of the session that it continues.
        """
        logits = logits[self.first_row : self.first_row + len(self.live)]
        processed = [
            chain.process(row, Step(request, hypothesis.token_ids, eos_ids), hypothesis.state)
            for row, hypothesis in zip(logits.log_softmax(dim=-1), self.live, strict=True)
        ]
        candidates = self._rank([scores for scores, _ in processed], penalties, len(eos_ids))
        live: list[Hypothesis] = []
        ended: list[Hypothesis] = []
        parents: list[int] = []
        n_others, self.taken = 0, []
        for place, (score, index) in enumerate(candidates):
            parent, token_id = divmod(index, logits.shape[-1])
            old = self.live[parent]
            reason = _finish_reason(old, token_id, request, eos_ids)
            # As in transformers: an EOS counts only among the first `width` candidates, and does not take up a place.
            if place >= self.width if reason == "eos" else n_others >= self.width:
                continue
            n_others += reason != "eos"
            self.taken.append(token_id)
            state = chain.observe(old.state, token_id, processed[parent][1])
            penalty = old.penalty + float(penalties[token_id])
            token_ids, tokens = old.token_ids, old.tokens
            if reason != "eos":
                token_ids, tokens = (*token_ids, token_id), (*tokens, Token.of(logits[parent], token_id))
            new = Hypothesis(token_ids, tokens, state, score, penalty, reason)
            if reason:
                ended.append(new)
            else:
                live.append(new)
                parents.append(self.first_row + parent)
        self._add_ended(ended)
        if self._is_finished(live):
            live, parents = [], []
        self.live = live
        return parents

    def _rank(self, scores: "Sequence[Tensor]", penalties: "Tensor", n_eos: int) -> list[tuple[float, int]]:
        """Return the best continuations of the live stories as (score, live story · V + token id), the best first.

        They are enough for `width` live stories even if all EOS tokens are among them.
        """
        import torch

        totals = torch.stack(list(scores)) - penalties.to(scores[0].device)
        totals += torch.tensor([[hypothesis.score] for hypothesis in self.live], device=totals.device)
        candidates = best(totals.flatten(), max(2, 1 + n_eos) * self.width)
        self.n_candidates += len(candidates)
        return candidates

    def _add_ended(self, ended: list[Hypothesis]) -> None:
        self.n_ended += len(ended)
        self.ended = sorted(self.ended + ended, key=self.value, reverse=True)[: self.width]

    def _is_finished(self, live: Sequence[Hypothesis]) -> bool:
        """Return True if no live story needs to grow further."""
        if not live or len(self.ended) < self.width:
            return False
        return self._early_stopping or self.value(live[0]) <= self.value(self.ended[-1])


def _finish_reason(
    hypothesis: Hypothesis, token_id: int, request: Request, eos_ids: frozenset[int]
) -> FinishReason | None:
    """Return the reason if a story ends with this token; None if it goes on."""
    if token_id in eos_ids:
        return "eos"
    return "length" if len(hypothesis.tokens) + 1 == request.max_new_tokens else None


def follow(
    session: Session, request: Request, chain: Chain, groups: Sequence[Group], diversity: float = 0.0
) -> Iterator[Event]:
    """Grow groups side by side until each has ended, and write the best story of all.

    The tokens with which every possible result begins are committed. The rest of the story that leads now is a draft.

    Args:
        session: the model. Its rows are replaced.
        request: the number of its branch says which story is written: first the best story of each group, then the
            second best of each, and so on.
        chain: its processors are used.
        groups: at least one. Each begins with the prompt.
        diversity: the nats that a token costs for each story of an earlier group that has just taken it.
    """
    import torch

    nth, place = divmod(request.story % sum(group.width for group in groups), len(groups))
    rows, telling = Rows(session, request), Telling(request)
    logits = rows.begin()
    n_steps = n_live = 0
    while True:
        parents: list[int] = []
        penalties = torch.zeros(session.vocab_size)
        for group in groups:
            if group.live:
                parents += group.grow(logits, request, chain, session.eos_ids, penalties)
                group.first_row = len(parents) - len(group.live)
                for token_id in group.taken:
                    penalties[token_id] += diversity
        n_steps, n_live = n_steps + bool(parents), n_live + len(parents)

        group, leader = _leader(groups, nth, place)
        # In its group's ranking, a story that has ended can only fall.
        possible = [hypothesis.tokens for g in groups for hypothesis in g.live + g.ended[: nth + 1]]
        reason = yield from telling.tell(leader.tokens, shared_length(possible) if parents else len(leader.tokens))
        if reason or not parents:
            statistics = {
                "beams": n_live / max(1, n_steps),
                "candidates": float(sum(g.n_candidates for g in groups)),
                "finished": float(sum(g.n_ended for g in groups)),
                "score": group.value_without_penalty(leader),
            }
            yield Finish(reason or leader.reason or "length", statistics)
            return
        logits = rows.advance(parents, [hypothesis.token_ids for g in groups for hypothesis in g.live])


def _leader(groups: Sequence[Group], nth: int, place: int) -> tuple[Group, Hypothesis]:
    """Return the story that leads now, with its group: of the nth best stories of the groups, the one at a place."""
    leaders = [(group, ranking[min(nth, len(ranking) - 1)]) for group in groups if (ranking := group.ranking())]
    leaders.sort(key=lambda leader: leader[0].value_without_penalty(leader[1]), reverse=True)
    return leaders[min(place, len(leaders) - 1)]


def best(scores: "Tensor", n: int) -> list[tuple[float, int]]:
    """Return the n largest of (N,) scores with their places, the largest first.

    Of equal scores, the first comes first. Scores of −inf are left out.
    """
    n_finite = int((scores > -float("inf")).sum())
    lowest = scores.topk(min(n, n_finite)).values[-1]
    places = (scores >= lowest).nonzero()[:, 0]
    order = scores[places].sort(descending=True, stable=True).indices[:n]
    return list(zip(scores[places][order].tolist(), places[order].tolist(), strict=True))
