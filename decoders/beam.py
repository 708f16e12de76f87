"""Beam search (Lowerre 1976, "The Harpy speech recognition system"; Graves 2012, arXiv 1211.3711).

The rules are those of transformers' `generate(num_beams=width, do_sample=False)`: what counts as a candidate, when a
story has ended, how its length is weighed, and when to stop. As there, the processors are given log-probabilities,
and what they leave is added up as it is: a temperature alone changes nothing, and what a truncation leaves is not
made to sum to one.
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
    Search,
    Session,
    Step,
    Token,
    option,
)
from tinystory.decoding.searching import Rows, Telling, shared_length

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Beam(Search):
    """Follow the likeliest stories side by side and tell the best of them.

    Of several stories (`--num`) the first is the best one, the second the second best, and so on.
    """

    name = "beam"
    needs_reorder = True
    width: int = option(4, ge=1, le=100, help="how many stories are followed")
    length_penalty: float = option(
        1.0,
        ge=-10,
        le=10,
        help="a story's log-probability is divided by its length to this power: more favours long ones",
    )
    early_stopping: bool = option(
        False, help="stop once `width` stories have ended, rather than once the best alive cannot get among them"
    )

    def search(self, session: Session, request: Request, chain: Chain) -> Iterator[Event]:
        """Yield the story's events; see `Search.search`."""
        root = Hypothesis(request.prompt_ids, (), chain.start(request))
        group = Group(root, self.width, self.length_penalty, self.early_stopping)
        return follow(session, request, chain, [group])


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A story that may be told in the end.

    Attributes:
        token_ids: the whole of it, prompt included.
        tokens: the new ones.
        state: of the chain.
        score: log-probability in nats, as the processors leave it, less `penalty`.
        penalty: what it was made to pay for being like others.
        reason: why it has ended; None for one that is alive.
    """

    token_ids: tuple[int, ...]
    tokens: tuple[Token, ...]
    state: ChainState
    score: float = 0.0
    penalty: float = 0.0
    reason: FinishReason | None = None


class Group:
    """One beam: the stories alive, likeliest first, and the best of those that have ended, best first.

    Attributes:
        first_row: the session's row that holds the first one alive.
        n_candidates: how many continuations were ranked.
        n_ended: how many stories have ended, those that were not kept included.
    """

    def __init__(self, root: Hypothesis, width: int, length_penalty: float, early_stopping: bool) -> None:
        self.width = width
        self._length_penalty = length_penalty
        self._early_stopping = early_stopping
        self.live = [root]
        self.ended: list[Hypothesis] = []
        self.first_row = self.n_candidates = self.n_ended = 0

    def value(self, hypothesis: Hypothesis, forgiven: float = 0.0) -> float:
        """By what stories of different lengths are compared; an EOS counts as a token."""
        n_picked = len(hypothesis.tokens) + (hypothesis.reason == "eos")
        return (hypothesis.score + forgiven) / float(max(1, n_picked) ** self._length_penalty)

    def own_value(self, hypothesis: Hypothesis) -> float:
        """The same without what was paid for diversity."""
        return self.value(hypothesis, hypothesis.penalty)

    def ranking(self) -> list[Hypothesis]:
        """Everything as it stands now, the best first."""
        return sorted(self.ended + self.live, key=self.value, reverse=True)

    def grow(
        self, logits: "Tensor", request: Request, chain: Chain, eos_ids: frozenset[int], penalties: "Tensor"
    ) -> list[int]:
        """Make every story alive longer by a token.

        Args:
            logits: (B, V), the session's.
            request: the limit, and what the stages want to know.
            chain: its processors apply.
            eos_ids: tokens that end a story.
            penalties: (V,), what each token costs beyond its log-probability.

        Returns:
            For each story now alive the row that it continues.
        """
        import torch

        logits = logits[self.first_row : self.first_row + len(self.live)]
        logprobs = logits.log_softmax(dim=-1)
        processed = [
            chain.process(row, Step(request, hypothesis.token_ids, eos_ids), hypothesis.state)
            for row, hypothesis in zip(logprobs, self.live, strict=True)
        ]
        totals = torch.stack([output for output, _ in processed]) - penalties.to(logits.device)
        totals += torch.tensor([[hypothesis.score] for hypothesis in self.live], device=logits.device)
        # So many that enough go on even if every other one of them ends.
        candidates = best(totals.flatten(), max(2, 1 + len(eos_ids)) * self.width)
        self.n_candidates += len(candidates)

        live: list[Hypothesis] = []
        ended: list[Hypothesis] = []
        parents: list[int] = []
        for place, (score, index) in enumerate(candidates):
            parent, token_id = divmod(index, logits.shape[-1])
            old = self.live[parent]
            reason: FinishReason | None = "eos" if token_id in eos_ids else None
            if not reason and len(old.tokens) + 1 == request.max_new_tokens:
                reason = "length"
            if place >= self.width if reason else len(live) == self.width:
                continue
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
        self.n_ended += len(ended)
        self.ended = sorted(self.ended + ended, key=self.value, reverse=True)[: self.width]
        full = len(self.ended) == self.width
        if full and live and (self._early_stopping or self.value(live[0]) <= self.value(self.ended[-1])):
            live, parents = [], []
        self.live = live
        return parents


def follow(
    session: Session, request: Request, chain: Chain, groups: Sequence[Group], diversity: float = 0.0
) -> Iterator[Event]:
    """Grow groups side by side until each has ended, and tell the best story of all.

    What every story that may still win begins with is committed, the rest of the one that leads now is a draft.

    Args:
        session: its rows are replaced.
        request: its sibling's number says which story to tell: every group's best in order, then the second bests.
        chain: its processors apply.
        groups: at least one; each starts from the prompt.
        diversity: what a token costs for each time that a group before has just taken it.
    """
    import torch

    nth, place = divmod(request.story % sum(group.width for group in groups), len(groups))
    rows, telling = Rows(session, request), Telling(request)
    logits = rows.begin()
    n_steps = n_alive = 0
    while True:
        parents: list[int] = []
        penalties = torch.zeros(session.vocab_size)
        for group in groups:
            if group.live:
                parents += group.grow(logits, request, chain, session.eos_ids, penalties)
                group.first_row = len(parents) - len(group.live)
                for hypothesis in group.live:
                    penalties[hypothesis.token_ids[-1]] += diversity
        n_steps, n_alive = n_steps + bool(parents), n_alive + len(parents)

        leaders = [(group, ranking[min(nth, len(ranking) - 1)]) for group in groups if (ranking := group.ranking())]
        leaders.sort(key=lambda leader: leader[0].own_value(leader[1]), reverse=True)
        group, leader = leaders[min(place, len(leaders) - 1)]
        # What has ended can only fall in its group's ranking.
        possible = [hypothesis.tokens for g in groups for hypothesis in g.live + g.ended[: nth + 1]]
        reason = yield from telling.tell(leader.tokens, shared_length(possible) if parents else len(leader.tokens))
        if reason or not parents:
            statistics = {
                "beams": n_alive / max(1, n_steps),
                "candidates": float(sum(g.n_candidates for g in groups)),
                "finished": float(sum(g.n_ended for g in groups)),
                "score": group.own_value(leader),
            }
            yield Finish(reason or leader.reason or "length", statistics)
            return
        logits = rows.advance(parents, [hypothesis.token_ids for g in groups for hypothesis in g.live])


def best(scores: "Tensor", n: int) -> list[tuple[float, int]]:
    """The n largest of (N,) scores with their places, largest first, the first of equals first; −inf is never one."""
    n_finite = int((scores > -float("inf")).sum())
    lowest = scores.topk(min(n, n_finite)).values[-1]
    places = (scores >= lowest).nonzero()[:, 0]
    order = scores[places].sort(descending=True, stable=True).indices[:n]
    return list(zip(scores[places][order].tolist(), places[order].tolist(), strict=True))
