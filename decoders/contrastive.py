"""Contrastive search (Su et al. 2022, "A contrastive framework for neural text generation", arXiv 2202.06417).

A model repeats itself when its hidden states become similar. So the model tries each of the k likeliest tokens, and the
search picks a token that is likely and whose hidden state differs from all earlier ones. It uses no noise, and each
token costs k rows of the model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinystory.decoding import Chain, Commit, Event, Finish, Request, Search, Session, Step, Token, option, shrunk
from tinystory.errors import UsageError
from tinystory_decoders.beam import best

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Contrastive(Search):
    """Pick one of the k likeliest tokens that is likely and whose hidden state differs from the earlier ones."""

    name = "contrastive"
    needs_reorder = True
    k: int = option(
        4,
        ge=1,
        le=100,
        instead="leave the stage out",
        help="how many tokens the model tries for each token of the story",
    )
    alpha: float = option(
        0.6, ge=0, le=1, help="weight of a different hidden state against a likely token; 0 is greedy"
    )

    def search(self, session: Session, request: Request, chain: Chain) -> Iterator[Event]:
        """Yield the events of the story; see `Search.search`.

        The worth of a candidate is (1 − alpha) · p − alpha · c. Here p is its probability after the processors, and c
        is the largest cosine between its hidden state and those of the tokens in the context. Of equal candidates, the
        likeliest is picked.

        Raises:
            UsageError: the context of the model is a single token, so there is nothing to compare with.
        """
        import torch

        room = session.max_seq_len - 1  # the candidate needs a place, too
        if not room:
            raise UsageError(f"{self.name} compares a token with those before it, but this model sees only one token")
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
            reason = request.reason_to_end(n_new)
            if reason:
                break
            if len(context) > room:
                context = shrunk(token_ids, request.window, room)
                logits, past = _read(session, context, request)
                row = 0
                reason = request.interrupted()  # a cancelled `_read` is incomplete, and no token may follow it
            else:
                logits, past = following[row], torch.cat((past, hidden[row : row + 1]))
        yield Finish(reason, {"overruled": n_other / max(1, n_picked)})


def _read(session: Session, context: Sequence[int], request: Request) -> "tuple[Tensor, Tensor]":
    """Read a text token by token, because a session gives only the hidden state of the last token.

    If the request is cancelled, the rest of the text is not read.

    Returns:
        The (V,) logits of the next token, and the unit vectors of the hidden states of all tokens that were read,
        (S, C).
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
    """Return (B, C) vectors scaled to length 1, in float32."""
    import torch.nn.functional as F

    return F.normalize(hidden.float(), dim=-1)
