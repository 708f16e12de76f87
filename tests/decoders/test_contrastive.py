"""Contrastive search: equal to full forward passes, and to greedy if alpha is 0."""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinystory.decoding import Commit, Decoder, LogitsProcessor, Request
from tinystory.decoding.loop import run
from tinystory.errors import UsageError
from tinystory.model.config import ModelConfig
from tinystory.model.transformer import Transformer
from tinystory.session.native import NativeSession
from tinystory.testing import ToySession, conformance
from tinystory_decoders.contrastive import Contrastive
from tinystory_decoders.greedy import Greedy
from tinystory_decoders.temperature import Temperature
from tinystory_decoders.top_k import TopK

ENDLESS = {"eos_logit": -math.inf}


def written(search, session, prompt=(0, 5, 3), max_new_tokens=12, processors=(), **others):
    """Return the token ids, the finish reason and the statistics."""
    decoder = search if isinstance(search, Decoder) else Decoder(processors, None, search)
    events = [event for _, event in run(session, [(decoder, Request(tuple(prompt), max_new_tokens, 1, **others))])]
    ids = [token.id for event in events if isinstance(event, Commit) for token in event.tokens]
    return ids, events[-1].reason, events[-1].statistics


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request):
    """Return random weights in float64, so that rounding makes no ties. EOS is rather likely."""
    sizes = (40, 2, 4, 32, 48)
    config = ModelConfig.llama(*sizes, 48) if request.param == "llama" else ModelConfig.gpt2(*sizes, tied_head=False)
    model = Transformer(config).double().eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(noise * 0.2 + name.endswith("norm.weight"))
    return model


@torch.no_grad()
def reference(model, prompt, limit, k, alpha, eos_id, temperature=1.0):
    """Write with one full forward pass for each candidate. Return the new ids and the smallest distance from a tie."""
    ids, margin = list(prompt), math.inf
    for _ in range(limit):
        past = model.hidden(torch.tensor([ids]))[0]
        probs = (model.head(past[-1]).float() / temperature).softmax(dim=-1)
        worths = []
        for token_id in probs.topk(k).indices.tolist():
            new = model.hidden(torch.tensor([[*ids, token_id]]))[0, -1]
            cosine = max(float(new @ old / new.norm() / old.norm()) for old in past)
            worths.append(((1 - alpha) * float(probs[token_id]) - alpha * cosine, token_id))
        worths.sort(reverse=True)
        if k > 1:
            margin = min(margin, worths[0][0] - worths[1][0])
        if worths[0][1] == eos_id:
            break
        ids.append(worths[0][1])
    return ids[len(prompt) :], margin


@pytest.mark.parametrize(("k", "alpha"), [(4, 0.6), (1, 0.6), (8, 0.3), (3, 1.0), (6, 0.05)])
def test_it_is_what_full_forward_passes_give(model, k, alpha):
    session = NativeSession(model, 0, frozenset({7}))
    for prompt in ([5], [0, 3, 9, 1, 1, 30]):
        expected, margin = reference(model, prompt, 10, k, alpha, 7)
        assert margin > 1e-6, "a tie: choose another prompt"
        ids, reason, _ = written(Contrastive(k, alpha), session, prompt, 10)
        assert ids == expected
        assert reason == ("length" if len(expected) == 10 else "eos")


def test_processors_apply_before(model):
    session = NativeSession(model, 0, frozenset({7}))
    expected, _ = reference(model, [0, 3, 9], 15, 4, 0.6, 7, temperature=3.0)
    assert written(Contrastive(), session, [0, 3, 9], 15, (Temperature(3.0),))[0] == expected
    assert expected != reference(model, [0, 3, 9], 15, 4, 0.6, 7)[0], "the temperature makes no difference"
    greedy, _, statistics = written(Contrastive(4, 0.9), session, [0, 3, 9], 15, (TopK(1),))
    assert greedy == written(Decoder((), Greedy()), session, [0, 3, 9], 15)[0]
    assert statistics["overruled"] == 0


@dataclass(frozen=True)
class LeaveTwo(LogitsProcessor):
    """Leave the tokens 5 and 9. The probability of 9 is 0 in float32."""

    name = "leave-two"

    def __call__(self, logits, step):
        """Return (V,) logits."""
        left = torch.full_like(logits, -math.inf)
        left[5], left[9] = 0.0, -1000.0
        return left


def test_a_removed_token_is_not_tried_in_place_of_an_unlikely_one():
    ids, _, _ = written(Contrastive(4, 1.0), ToySession(**ENDLESS), max_new_tokens=20, processors=(LeaveTwo(),))
    assert set(ids) == {5, 9}


@given(st.integers(0, 500), st.integers(1, 6), st.integers(1, 14))
@settings(deadline=None, max_examples=30)
def test_without_weight_it_is_greedy(seed, k, limit):
    greedy = written(Decoder((), Greedy()), ToySession(seed=seed), max_new_tokens=limit)
    for search in (Contrastive(k, 0.0), Contrastive(1, 0.7)):
        assert written(search, ToySession(seed=seed), max_new_tokens=limit)[:2] == greedy[:2]


def test_it_goes_around_in_smaller_circles_less():
    """In a session that repeats itself, greedy stays in the loop, and contrastive search leaves it."""
    session = ToySession(memory=1, vocab_size=12, seed=3, **ENDLESS)
    greedy = written(Decoder((), Greedy()), session, max_new_tokens=40)[0]
    other, _, statistics = written(Contrastive(6, 0.9), session, max_new_tokens=40)
    assert len(set(other)) > len(set(greedy))
    assert statistics["overruled"] > 0


def test_the_cost_is_a_row_for_each_candidate():
    session = ToySession(**ENDLESS)
    written(Contrastive(5), session, max_new_tokens=4)
    assert [call.tokens for call in session.calls if call.verb == "decode"] == [1, 1, *[5] * 4]


def test_reading_a_long_prompt_can_be_cancelled():
    session = ToySession()
    n_run = lambda: sum(call.verb in ("prefill", "decode") for call in session.calls)  # noqa: E731
    ids, reason, _ = written(Contrastive(), session, range(2, 30), cancel=lambda: n_run() >= 5)
    assert (ids, reason, n_run()) == ([], "cancelled", 5)


@pytest.mark.parametrize("n_calls", range(1, 40))
def test_a_cancel_while_old_text_is_read_again_changes_no_token(n_calls):
    whole, _, _ = written(Contrastive(), ToySession(max_seq_len=9, **ENDLESS), max_new_tokens=30)
    session = ToySession(max_seq_len=9, **ENDLESS)
    n_run = lambda: sum(call.verb in ("prefill", "decode") for call in session.calls)  # noqa: E731
    ids, reason, _ = written(Contrastive(), session, max_new_tokens=30, cancel=lambda: n_run() >= n_calls)
    assert reason == "cancelled"
    assert ids == whole[: len(ids)]
    assert n_run() == n_calls


@pytest.mark.parametrize("max_seq_len", [2, 5, 9])
def test_it_goes_on_past_the_context(max_seq_len):
    ids, reason, _ = written(Contrastive(), ToySession(max_seq_len=max_seq_len, **ENDLESS), max_new_tokens=30)
    assert (len(ids), reason) == (30, "length")


def test_a_model_of_one_token_is_refused():
    with pytest.raises(UsageError, match="this model sees only one"):
        written(Contrastive(), ToySession(max_seq_len=1), [0])


@pytest.mark.parametrize("stage", [Contrastive(), Contrastive(1), Contrastive(100, 1.0), Contrastive(3, 0.0)])
def test_contrastive_conforms(stage):
    assert conformance(stage) == []
    assert conformance(Decoder((TopK(2),), None, stage)) == []
