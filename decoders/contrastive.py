"""Contrastive search (Su et al. 2022, "A contrastive framework for neural text generation", arXiv 2202.06417).

A model repeats itself where its hidden states become alike. So each of the k likeliest tokens is tried by a step of
the model, and one is taken that is likely and whose hidden state is unlike all those before it. It uses no luck, and
costs k rows of the model for each token.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinystory.decoding import Chain, Commit, Event, Finish, Request, Search, Session, Step, Token, option
from tinystory.decoding.loop import shrunk
from tinystory.errors import UsageError
from tinystory_decoders.beam import best

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Contrastive(Search):
    """Of the k likeliest tokens take one that is likely, yet brings the model into a state it has not been in."""

    name = "contrastive"
    needs_reorder = True
    k: int = option(4, ge=1, le=100, help="how many tokens are tried, each by a step of the model")
    alpha: float = option(0.6, ge=0, le=1, help="weight of being different against being likely; 0 is greedy")

    def search(self, session: Session, request: Request, chain: Chain) -> Iterator[Event]:
        """Yield the story's events; see `Search.search`.

        A candidate is worth (1 − alpha) · p − alpha · the largest cosine between its hidden state and those of the
        tokens in sight, p being its probability after the processors. The likeliest of equals is taken.

        Raises:
            UsageError: the model sees a single token, so that there is nothing to compare with.
        """
        import torch

        room = session.max_seq_len - 1  # a candidate has to fit as well
        if not room:
            raise UsageError(f"{self.name} compares a token with those before it; this model sees only one")
        token_ids, state = list(request.prompt_ids), chain.start(request)
        context = shrunk(token_ids, request.window, room) if len(token_ids) > room else list(token_ids)
        logits, past = _read(session, context, request)
        row = n_new = n_picked = n_other = 0
        reason = request.interrupted()
        while not reason:
            processed, received = chain.process(logits, Step(request, token_ids, session.eos_ids), state)
            candidates = torch.tensor([place for _, place in best(processed, self.k)])
            probs = processed.softmax(dim=-1)[candidates]
            session.reorder(torch.full_like(candidates, row))
            following = session.decode(candidates)
            hidden = _unit(session.hidden())
            row = int(((1 - self.alpha) * probs - self.alpha * (hidden @ past.T).amax(dim=-1)).argmax())
            token_id = int(candidates[row])
            n_picked, n_other = n_picked + 1, n_other + (row > 0)
            if token_id in session.eos_ids:
                reason = "eos"
                break
            state = chain.observe(state, token_id, received)
            token_ids.append(token_id)
            context.append(token_id)
            n_new += 1
            yield Commit((Token.of(logits, token_id),))
            reason = request.interrupted() or ("length" if n_new == request.max_new_tokens else None)
            if reason:
                break
            if len(context) > room:
                context = shrunk(token_ids, request.window, room)
                logits, past = _read(session, context, request)
                row = 0
                reason = request.interrupted()  # then not all was read, and nothing may be picked
            else:
                logits, past = following[row], torch.cat((past, hidden[row : row + 1]))
        yield Finish(reason, {"overruled": n_other / max(1, n_picked)})


def _read(session: Session, context: Sequence[int], request: Request) -> "tuple[Tensor, Tensor]":
    """Feed a text token by token, since a session gives the hidden state of the last one alone.

    Returns:
        The next token's logits, (V,), and the unit vectors of all hidden states, (S, C); of the tokens up to where
        the request was cancelled.
    """
    import torch

    logits = session.prefill([context[:1]])
    past = [_unit(session.hidden())]
    for token_id in context[1:]:
        if request.cancel():
            break
        logits = session.decode(torch.tensor([token_id]))
        past.append(_unit(session.hidden()))
    return logits[0], torch.cat(past)


def _unit(hidden: "Tensor") -> "Tensor":
    """(B, C) vectors scaled to length 1, in float32."""
    import torch.nn.functional as F

    return F.normalize(hidden.float(), dim=-1)
