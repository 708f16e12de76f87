"""Mirostat: both versions equal the formulas; the draw, and the surprise that it holds."""

import math
from statistics import fmean

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from logits_cases import (
    HALVES,
    INF,
    REQUEST,
    assert_drawn_by,
    kept,
    many_logits,
    some_examples,
    step_at,
)

from tinystory.decoding import Commit, Decoder, Request
from tinystory.decoding.loop import run
from tinystory.decoding.spec import format_spec
from tinystory.errors import UsageError
from tinystory.testing import ToySession, conformance
from tinystory_decoders.mirostat import Mirostat, rank_for
from tinystory_decoders.sample import Sample
from tinystory_decoders.top_k import TopK


def at(mu, position=1):
    return step_at(position).for_stage(mu)


def allowed(stage, logits, mu):
    return kept(stage.log_probs(logits, at(mu)))


# By hand, on the distribution [1/2, 1/4, 1/8, 1/8]: surprises of 1, 2, 3 and 3 bits.


@pytest.mark.parametrize(
    ("mu", "stay"), [(-50.0, {0}), (0.5, {0}), (1.5, {0}), (2.1, {0, 1}), (2.9, {0, 1}), (3.1, {0, 1, 2, 3})]
)
def test_version_2_removes_what_is_too_surprising(mu, stay):
    for logits in (HALVES, HALVES.double(), HALVES + 7):
        assert allowed(Mirostat(), logits, mu) == stay


def test_mu_starts_at_twice_the_target_and_moves_against_the_error():
    stage = Mirostat(tau=1.5, eta=0.2)
    mu = stage.start(REQUEST)
    assert mu == 3.0
    mu = stage.observe(mu, 0, HALVES)
    assert mu == pytest.approx(3.0 + 0.2 * 0.5)
    mu = stage.observe(mu, 3, HALVES)
    assert mu == pytest.approx(3.1 - 0.2 * 1.5)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("before", "token_id", "mu"),
    [
        (torch.zeros(1024), 5, 0.0),  # even the likeliest token has 10 bits
        (torch.tensor([0.0, -INF, -1.0]), 1, 0.0),  # forced, without any probability
        (torch.tensor([0.0, -INF]), 0, 40.0),  # no surprise is possible, and the target cannot be reached
    ],
)
def test_mu_does_not_move_on_where_it_changes_nothing(version, before, token_id, mu):
    """After 1,000 tokens it is at the bound, so a few tokens bring it back."""
    stage = Mirostat(version=version)
    state = stage.start(REQUEST)
    for _ in range(1_000):
        state = stage.observe(state, token_id, before)
    assert state == mu
    away = state
    for _ in range(20):
        state = stage.observe(state, 3 if mu else 0, HALVES - 9)
    assert abs(state - away) == pytest.approx(20 * 0.1 * abs((3 if mu else 1) - 1.6))


def test_the_bound_of_mu_is_never_below_its_start():
    stage = Mirostat(50.0)
    assert stage.observe(stage.start(REQUEST), 0, torch.zeros(2)) == 100.0


@pytest.mark.parametrize("version", [1, 2])
def test_a_flat_passage_is_followed_by_few_likeliest_tokens(version):
    """After 50 places where all tokens are equally likely, other tokens than the likeliest come back soon."""
    stage = Mirostat(version=version)
    state = stage.start(REQUEST)
    for _ in range(50):
        state = stage.observe(state, 7, torch.zeros(1024))
    n_alone = 0
    while len(allowed(stage, HALVES, state)) == 1:
        state = stage.observe(state, 0, HALVES)
        n_alone += 1
    assert 0 < n_alone <= 40


def test_a_forced_token_without_any_probability_does_not_end_it_all():
    stage = Mirostat()
    mu = stage.observe(3.2, 1, torch.tensor([0.0, -INF, -1.0]))
    assert -10 < mu < 3.2


def test_the_log_probs_are_renormalised():
    expected = torch.tensor([2 / 3, 1 / 3, 0, 0]).log()
    torch.testing.assert_close(Mirostat().log_probs(HALVES, at(2.5)), expected)


def zipf_rank(probs, mu):
    """Return k of version 1 in plain Python, from the formulas of the paper; None if they do not work."""
    probs = sorted((p for p in probs if p > 0), reverse=True)
    n, ranks = len(probs), range(1, min(100, len(probs)))
    if n < 3:
        return None
    t = [math.log((i + 1) / i) for i in ranks]
    b = [math.log(probs[i - 1] / probs[i]) for i in ranks]
    s = math.fsum(x * y for x, y in zip(t, b, strict=True)) / math.fsum(x * x for x in t)
    if abs(s - 1) < 1e-3 or s < 0.1 or s > 50:
        return None
    return ((s - 1) * 2**mu / (1 - n ** (1 - s))) ** (1 / s)


@given(st.lists(st.floats(-8, 8), min_size=1, max_size=150), st.floats(-3, 8))
@some_examples
def test_version_1_takes_the_rank_of_the_formula(values, mu):
    logits = torch.tensor([*values, -INF], dtype=torch.float64)
    k = rank_for(logits, mu)
    assert 1 <= k <= len(values)
    expected = zipf_rank(logits.softmax(dim=-1).tolist(), mu)
    if expected and abs(expected - round(expected)) > 1e-6:
        assert k == max(1, min(len(values), int(expected)))
    smallest = sorted(values)[-k]
    assert allowed(Mirostat(version=1), logits, mu) == {i for i, x in enumerate(values) if x >= smallest}


@pytest.mark.parametrize("s", [0.8, 1.0, 1.5])
def test_version_1_finds_the_exponent_of_a_zipf_law(s):
    """If the law holds exactly, the last kept token has the surprise mu, except that an integral replaces the sum."""
    logits = -s * torch.arange(1, 5001).double().log()
    for mu in (4.0, 7.0):
        k = rank_for(logits, mu)
        surprise = -float(logits.log_softmax(dim=-1)[k - 1]) / math.log(2)
        assert surprise == pytest.approx(mu, abs=1.0)
    assert rank_for(logits, 9.0) > rank_for(logits, 5.0)


@given(many_logits, st.floats(-1e4, 1e4), st.sampled_from([1, 2]))
@some_examples
def test_the_likeliest_stays_whatever_mu(logits, mu, version):
    stay = allowed(Mirostat(version=version), logits, mu)
    assert int(logits.argmax()) in stay
    assert stay <= kept(logits)
    assert Mirostat(version=version)(logits, at(mu)) in stay


@pytest.mark.parametrize(("stage", "mu"), [(Mirostat(), 2.5), (Mirostat(), 9.0), (Mirostat(version=1), 1.2)])
def test_draws_follow_the_log_probs(stage, mu):
    probs = stage.log_probs(HALVES, at(mu)).exp().tolist()
    assert_drawn_by(lambda position: stage(HALVES, at(mu, position)), probs, 2_000)


@pytest.mark.parametrize(
    "decoder",
    [Mirostat(), Mirostat(version=1), Mirostat(1e-9), Mirostat(50.0, 10.0), Mirostat(0.5, 1e-9, 1),
     Decoder((TopK(3),), Mirostat()), Decoder((TopK(3),), Mirostat(version=1))],
)  # fmt: skip
def test_mirostat_conforms(decoder):
    assert conformance(decoder) == []


def test_what_users_write():
    assert format_spec(Decoder((), Mirostat())) == "mirostat"
    assert format_spec(Decoder((), Mirostat(1.2, version=1))) == "mirostat 1.2 version=1"
    with pytest.raises(UsageError, match="version must be an integer ≥ 1 and ≤ 2"):
        Mirostat(version=3)
    with pytest.raises(UsageError, match="tau must be a number > 0"):
        Mirostat(0.0)


# Control: over a long run the mean surprise is the target.


def surprise(session, sampler, n_tokens, prompt=(0,), seed=5):
    """Return the mean surprise of an endless story and the mean entropy of its distributions, both in bits."""
    request = Request(tuple(prompt), n_tokens, seed)
    events = run(session, [(Decoder((), sampler), request)])
    tokens = [token for _, event in events if isinstance(event, Commit) for token in event.tokens]
    assert len(tokens) == n_tokens
    return fmean(-token.logprob / math.log(2) for token in tokens), fmean(token.entropy for token in tokens)


@pytest.mark.parametrize("version", [1, 2])
def test_it_holds_half_the_surprise_of_a_toy_model(version):
    def session():
        return ToySession(eos_logit=-INF, max_seq_len=512)

    own, _ = surprise(session(), Sample(), 400)
    for seed in (5, 6):
        held, _ = surprise(session(), Mirostat(own / 2, version=version), 500, seed=seed)
        assert held == pytest.approx(own / 2, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("version", [1, 2])
def test_it_holds_half_the_surprise_of_the_shipped_model(version):
    from tinystory.session.loading import load

    session = load().session
    session.eos_ids = frozenset()
    own, _ = surprise(session, Sample(), 3000)
    for seed in (5, 6):
        held, _ = surprise(session, Mirostat(own / 2, version=version), 3000, seed=seed)
        assert held == pytest.approx(own / 2, rel=0.05)


@pytest.mark.slow
def test_the_default_target_is_what_sample_at_0_8_has(load_script):
    from tinystory.session.loading import load

    bits, _ = load_script("measure_surprise").surprise(load(), "sample 0.8", 100, 256)
    assert bits == pytest.approx(Mirostat.tau, rel=0.05)
