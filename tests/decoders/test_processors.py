"""The processors that need no text: equal to transformers and to plain references, by hand and in chains."""

import math
from collections import Counter
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from logits_cases import (
    HALVES,
    INF,
    STEP,
    assert_drawn_by,
    assert_parity,
    enough_examples,
    kept,
    logits_after_a_story,
    many_logits,
    some_examples,
    step_after,
    step_at,
)

from tinystory.decoding import Decoder, Request, Step
from tinystory.decoding.plugins import discover
from tinystory.decoding.spec import parse_spec
from tinystory.errors import UsageError
from tinystory.testing import ToySession, ToyVocabulary, conformance
from tinystory_decoders.dynamic_temperature import DynamicTemperature
from tinystory_decoders.epsilon import Epsilon
from tinystory_decoders.eta import Eta
from tinystory_decoders.frequency_penalty import FrequencyPenalty
from tinystory_decoders.min_length import MinLength
from tinystory_decoders.min_p import MinP
from tinystory_decoders.no_repeat import NoRepeat
from tinystory_decoders.presence_penalty import PresencePenalty
from tinystory_decoders.repetition_penalty import RepetitionPenalty
from tinystory_decoders.sample import Sample
from tinystory_decoders.temperature import Temperature
from tinystory_decoders.top_a import TopA
from tinystory_decoders.top_h import TopH
from tinystory_decoders.top_k import TopK
from tinystory_decoders.top_n_sigma import TopNSigma
from tinystory_decoders.top_p import TopP
from tinystory_decoders.typical import Typical
from tinystory_decoders.watermark import Watermark
from tinystory_decoders.xtc import XTC

shares = st.floats(0, 1, exclude_min=True, exclude_max=True) | st.sampled_from([3e-4, 0.01, 0.1, 0.25, 0.5, 0.9])


# Parity. transformers is imported inside, so that the other tests do not wait for it.


@pytest.mark.parity
@given(many_logits, shares)
@enough_examples
def test_typical_parity(logits, mass):
    from transformers.generation.logits_process import TypicalLogitsWarper

    assert_parity(Typical(mass), TypicalLogitsWarper(mass), logits)


@pytest.mark.parity
@given(many_logits, shares)
@enough_examples
def test_epsilon_parity(logits, e):
    from transformers.generation.logits_process import EpsilonLogitsWarper

    assert_parity(Epsilon(e), EpsilonLogitsWarper(e), logits)


@pytest.mark.parity
@given(many_logits, shares)
@enough_examples
def test_eta_parity(logits, e):
    from transformers.generation.logits_process import EtaLogitsWarper

    assert_parity(Eta(e), EtaLogitsWarper(e), logits)


@pytest.mark.parity
@given(many_logits, shares | st.just(1.0))
@enough_examples
def test_top_h_parity(logits, h):
    from transformers.generation.logits_process import TopHLogitsWarper

    assert_parity(TopH(h), TopHLogitsWarper(h), logits)


@pytest.mark.parity
@given(logits_after_a_story(), st.floats(1e-3, 1e3) | st.just(1.1))
@enough_examples
def test_repetition_penalty_parity(case, r):
    from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

    logits, token_ids = case
    assert_parity(RepetitionPenalty(r), RepetitionPenaltyLogitsProcessor(r), logits, token_ids)


@pytest.mark.parity
@given(logits_after_a_story(), st.integers(1, 4))
@enough_examples
def test_no_repeat_parity(case, n):
    from transformers.generation.logits_process import NoRepeatNGramLogitsProcessor

    logits, token_ids = case
    assert_parity(NoRepeat(n), NoRepeatNGramLogitsProcessor(n), logits, token_ids)


@pytest.mark.parity
@given(logits_after_a_story(), st.integers(0, 40))
@enough_examples
def test_min_length_parity(case, n):
    """The steps of `assert_parity` have a prompt of one token, and token 1 is EOS."""
    from transformers.generation.logits_process import MinNewTokensLengthLogitsProcessor

    logits, token_ids = case
    assert_parity(MinLength(n), MinNewTokensLengthLogitsProcessor(1, n, [1]), logits, token_ids)


@pytest.mark.parity
@pytest.mark.parametrize("seed", range(4))
def test_parity_on_a_whole_vocabulary(seed):
    """Compare float32 sums over many tokens after 300 tokens, with half of the logits tied and some removed."""
    from transformers.generation import logits_process as hf

    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(16_384, generator=generator) * 3
    logits[::2] = logits[::2].round()
    logits[5::7] = -INF
    token_ids = torch.randint(50, (300,), generator=generator).tolist()
    for ours, warper in [
        (Typical(0.2), hf.TypicalLogitsWarper(0.2)),
        (Typical(0.95), hf.TypicalLogitsWarper(0.95)),
        (Epsilon(3e-4), hf.EpsilonLogitsWarper(3e-4)),
        (Eta(3e-3), hf.EtaLogitsWarper(3e-3)),
        (TopH(0.4), hf.TopHLogitsWarper(0.4)),
        (TopH(0.9), hf.TopHLogitsWarper(0.9)),
        (RepetitionPenalty(1.3), hf.RepetitionPenaltyLogitsProcessor(1.3)),
        (NoRepeat(2), hf.NoRepeatNGramLogitsProcessor(2)),
    ]:
        assert_parity(ours, warper, logits, token_ids)


# References in plain Python, from the formulas, where transformers has no such processor. float64 on both sides;
# a token that is within rounding of its threshold may go either way.


def softmax(scores):
    top = max(scores)
    weights = [math.exp(score - top) for score in scores]
    return [weight / math.fsum(weights) for weight in weights]


def assert_kept(output, logits, distances):
    """A token stays if its distance above the threshold is not negative."""
    stay = kept(output)
    for i, distance in enumerate(distances):
        if logits[i] > -INF and abs(distance) > 1e-9:
            assert (i in stay) == (distance > 0), (i, distance)
    assert all(output[i] == logits[i] for i in stay)
    assert stay


@given(many_logits, st.floats(0.01, 5))
@some_examples
def test_top_n_sigma_reference(logits, n):
    logits = logits.double()
    finite = [x for x in logits.tolist() if x > -INF]
    mean = math.fsum(finite) / len(finite)
    sigma = math.sqrt(math.fsum((x - mean) ** 2 for x in finite) / len(finite))
    threshold = max(finite) - n * sigma
    assert_kept(TopNSigma(n)(logits, STEP), logits, [x - threshold for x in logits.tolist()])


@given(many_logits, st.floats(0, 1))
@some_examples
def test_top_a_reference(logits, a):
    logits = logits.double()
    probs = softmax(logits.tolist())
    assert_kept(TopA(a)(logits, STEP), logits, [p - a * max(probs) ** 2 for p in probs])


@given(many_logits, st.floats(0.01, 0.5), st.integers(1, 50))
@some_examples
def test_xtc_reference(logits, threshold, position):
    """With probability 1/2, the noise of the position decides whether the rule is used; with 1, it is always used."""
    logits = logits.double()
    probs = softmax(logits.tolist())
    assume(all(abs(p - threshold) > 1e-9 for p in probs))
    likely = [i for i, p in enumerate(probs) if p >= threshold]
    step = step_at(position)
    least = min(likely, key=lambda i: logits[i], default=None)
    expected = kept(logits) - {i for i in likely if i != least}
    assert kept(XTC(1.0, threshold)(logits, step)) == expected
    strikes = float(step.noise("xtc").uniform()) < 0.5
    assert kept(XTC(0.5, threshold)(logits, step)) == (expected if strikes else kept(logits))


@given(many_logits, st.floats(0.1, 3), st.floats(0.1, 3), st.floats(0.2, 4))
@some_examples
def test_dynamic_temperature_reference(logits, low, high, exponent):
    logits = logits.double()
    probs = [p for p in softmax([x for x in logits.tolist() if x > -INF]) if p > 0]
    n = len(kept(logits))
    share = -math.fsum(p * math.log(p) for p in probs) / math.log(n) if n > 1 else 0.0
    expected = logits / (low + (high - low) * max(share, 0.0) ** exponent)
    torch.testing.assert_close(DynamicTemperature(low, high, exponent)(logits, STEP), expected, rtol=1e-6, atol=1e-6)


@given(logits_after_a_story(), st.floats(-5, 5), st.integers(0, 30))
@some_examples
def test_frequency_and_presence_reference(case, c, n_prompt):
    logits, token_ids = case[0].double(), case[1]
    n_prompt = min(n_prompt, len(token_ids))
    counts = Counter(token_ids[n_prompt:])
    step = step_after(token_ids, n_prompt)
    frequency = [x - c * counts[i] for i, x in enumerate(logits.tolist())]
    presence = [x - c * (counts[i] > 0) for i, x in enumerate(logits.tolist())]
    assert FrequencyPenalty(c)(logits, step).tolist() == pytest.approx(frequency)
    assert PresencePenalty(c)(logits, step).tolist() == pytest.approx(presence)


@given(logits_after_a_story(), st.floats(0.5, 2), st.integers(0, 12))
@some_examples
def test_repetition_window_reference(case, r, window):
    logits, token_ids = case[0].double(), case[1]
    seen = token_ids[len(token_ids) - window :] if 0 < window < len(token_ids) else token_ids
    expected = [x if i not in seen else x / r if x > 0 else x * r for i, x in enumerate(logits.tolist())]
    assert RepetitionPenalty(r, window)(logits, step_after(token_ids)).tolist() == pytest.approx(expected)


# By hand, on the distribution [1/2, 1/4, 1/8, 1/8]: surprises of 1, 2, 3, 3 bits, an entropy of 1.75 bits.


@pytest.mark.parametrize(
    ("stage", "stay"),
    [
        (Typical(0.2), {1}),  # distances from the entropy: 0.75, 0.25, 1.25 and 1.25 bits
        (Typical(0.3), {0, 1}),
        (Typical(0.76), {0, 1, 2, 3}),  # the last two are equally far
        (Epsilon(0.1), {0, 1, 2, 3}),
        (Epsilon(0.2), {0, 1}),
        (Epsilon(0.9), {0}),
        (Eta(0.05), {0, 1, 2, 3}),  # √0.05 · 2^−1.75 = 0.066 > 0.05
        (Eta(0.17), {0, 1, 2, 3}),  # 0.1226: between this and the next, √e · 2^−1.75 passes 1/8
        (Eta(0.18), {0, 1}),  # 0.1261
        (Eta(0.99), {0}),  # 0.2958 passes 1/4
        (TopH(0.28), {0}),  # the first token holds 0.5 of 1.75 bits: 28.57 %
        (TopH(0.57), {0}),
        (TopH(0.58), {0, 1}),  # two hold 57.14 %
        (TopNSigma(0.5), {0}),  # σ of the logits is 0.5743, the first gap 0.6931
        (TopNSigma(1.21), {0, 1}),
        (TopNSigma(2.5), {0, 1, 2, 3}),  # 1.3863 below
        (TopA(0.49), {0, 1, 2, 3}),  # the threshold is a / 4
        (TopA(0.51), {0, 1}),
        (TopA(0.99), {0, 1}),
        (XTC(1.0, 0.3), {0, 1, 2, 3}),  # a single likely token stays
        (XTC(1.0, 0.2), {1, 2, 3}),
        (XTC(1.0, 0.1), {2}),  # of the equals the lowest
    ],
)  # fmt: skip
def test_kept_by_hand(stage, stay):
    for logits in (HALVES, HALVES.double()):
        output = stage(logits, STEP)
        assert kept(output) == stay
        assert output.dtype == logits.dtype
        assert all(output[token_id] == logits[token_id] for token_id in stay)


@pytest.mark.parametrize(
    ("stage", "token_ids", "output"),
    [
        (RepetitionPenalty(2.0), [0, 1], [1, -4, 0, -INF]),
        (RepetitionPenalty(2.0, window=1), [0, 1], [2, -4, 0, -INF]),
        (RepetitionPenalty(2.0, window=9), [0, 1, 3], [1, -4, 0, -INF]),
        (FrequencyPenalty(0.5), [0, 1, 1, 2], [2, -3, -0.5, -INF]),  # the first token is the prompt
        (FrequencyPenalty(-1.0), [0, 3, 0], [3, -2, 0, -INF]),
        (FrequencyPenalty(0.5), [0], [2, -2, 0, -INF]),
        (PresencePenalty(0.5), [0, 1, 1, 2], [2, -2.5, -0.5, -INF]),
        (NoRepeat(1), [0], [-INF, -2, 0, -INF]),
        (NoRepeat(2), [0, 1, 0], [2, -INF, 0, -INF]),
        (NoRepeat(3), [0, 1, 0], [2, -2, 0, -INF]),
        (NoRepeat(3), [0, 1, 2, 0, 1], [2, -2, -INF, -INF]),
        (NoRepeat(9), [0, 1, 2, 0, 1], [2, -2, 0, -INF]),
        (NoRepeat(1), [0, 1, 2], [2, -2, 0, -INF]),  # nothing would be left
        (MinLength(2), [0, 2], [2, -INF, 0, -INF]),
        (MinLength(2), [0, 2, 2], [2, -2, 0, -INF]),
        (DynamicTemperature(0.5, 2.0), [0], None),
    ],
)
def test_changed_by_hand(stage, token_ids, output):
    logits = torch.tensor([2.0, -2.0, 0.0, -INF])
    if output is None:  # the entropy is 0.4411 nats of ln 3
        t = 0.5 + 1.5 * 0.441057 / math.log(3)
        output = pytest.approx([2 / t, -2 / t, 0, -INF], rel=1e-4)
    for own in (logits, logits.double()):
        assert stage(own, step_after(token_ids)).tolist() == output


def test_where_only_the_end_is_left_it_stays():
    logits = torch.tensor([-INF, 3.0, -INF])
    assert MinLength(5)(logits, step_after([0])).equal(logits)


def test_the_likeliest_token_stays_whatever_the_threshold():
    logits = torch.zeros(1000)
    logits[7] = 1e-3
    for stage in (Epsilon(0.99), Eta(0.99), TopH(1e-6), TopNSigma(1e-9), TopA(1.0)):
        assert 7 in kept(stage(logits, STEP))


EXTREME = (
    "temperature 1e-300|temperature 1e300|top-k 999999999999999999999999|top-p 1e-300|typical 1e-300|epsilon 1e-300|"
    "eta 1e-300|top-h 1e-300|top-n-sigma 1e300|top-a 1e-300|xtc 1 threshold=1e-300|xtc 1e-300|"
    "dynamic-temperature low=1e-300 high=1e300|dynamic-temperature low=1e300 high=1e-300 exponent=1e300|"
    "repetition-penalty 1e300|repetition-penalty 1e-300 window=999999999999999999999999|frequency-penalty -100|"
    "no-repeat 1|no-repeat 999999999999999999999999|min-length 999999999999999999999999|bias a=1e308 b=-1e308|"
    "dry allowed=999999999999999999999999|dry 100 base=1e308 allowed=1|watermark key=999999999999999999999999|"
    "watermark gamma=1e-300|guidance 100|expert-amateur beta=100"
)
SAMPLERS = (
    "greedy|sample 1e-300|sample 1e39|sample 1e300|mirostat 1e-300|mirostat 1e308 eta=1e308|mirostat 1 eta=1e308|"
    "mirostat 1e308 eta=1e308 version=1|mirostat 1e-300 version=1"
)


def edge_logits(vocab_size):
    """Yield logits that are all equal, masked, far apart, nearly equal, or a single one that is left."""
    equal, line = torch.zeros(vocab_size), torch.linspace(-5, 5, vocab_size)
    yield from (equal, equal - 1e4, line, 1e4 * line)
    if vocab_size > 1:
        yield line.masked_fill(torch.arange(vocab_size) % 2 == 0, -INF)
        yield torch.full((vocab_size,), -INF).index_fill(0, torch.tensor([1]), 3.0)
        yield equal.index_fill(0, torch.tensor([vocab_size // 2]), 1e-7)


@pytest.mark.parametrize("vocab_size", [1, 2, 7, 40])
def test_extreme_options_on_extreme_logits(vocab_size):
    """No NaN or +inf, a token is left, no removed token comes back; and samplers know what they draw."""
    registry, session = discover(user_folder=None), ToySession(vocab_size=vocab_size)
    request = Request((0,), 9, 1, vocabulary=ToyVocabulary(vocab_size), opener=session.open)
    last = vocab_size - 1
    for spec in f"{EXTREME}|{SAMPLERS}".split("|"):
        decoder = parse_spec(spec, registry)
        for logits, ids in product(edge_logits(vocab_size), ([0], [0, last, last, last])):
            stage = decoder.stages[0]
            state = stage.start(request)
            for token_id in ids[1:]:
                state = stage.observe(state, token_id, logits)
            step = Step(request, ids, session.eos_ids, state)
            if stage.kind == "processor":
                output = stage(logits, step)
                assert kept(output) <= kept(logits), spec
            else:
                output = stage.log_probs(logits, step)
                assert output[stage(logits, step)] > -INF, spec
                assert float(output.exp().sum()) == pytest.approx(1, abs=1e-3), spec
            assert not output.isnan().any(), spec
            assert -INF < output.max() < INF, spec


@pytest.mark.parametrize(
    "spec", ["bias a=1e308 | temperature 1e-300", "bias a=-1e308 | dynamic-temperature 1e-300 high=1"]
)
def test_a_huge_bias_stays_finite_after_a_temperature(spec):
    chain = parse_spec(spec, discover(user_folder=None)).chain
    request = Request((0,), 9, 1, vocabulary=ToyVocabulary(7))
    logits, _ = chain.process(torch.zeros(7), Step(request, [0], frozenset()), chain.start(request))
    assert logits.isfinite().all()


def test_how_often_xtc_strikes():
    """Its noise is not that of the draw, and does not depend on the token: 4,000 positions, 3 standard deviations."""
    strikes = [len(kept(XTC(0.3)(HALVES, step_at(position)))) == 1 for position in range(1, 4_001)]
    assert abs(np.mean(strikes) - 0.3) < 3 * math.sqrt(0.21 / 2_000)
    drawn = [float(step_at(position).noise().uniform()) < 0.3 for position in range(1, 4_001)]
    assert abs(np.corrcoef(strikes, drawn)[0, 1]) < 0.05
    assert kept(XTC(1e-12)(HALVES, STEP)) == {0, 1, 2, 3}


def test_top_n_sigma_does_not_mind_temperature():
    logits = torch.linspace(-4, 4, 50)
    for t in (0.25, 4.0):
        assert kept(TopNSigma(1.5)(logits / t, STEP)) == kept(TopNSigma(1.5)(logits, STEP))


# The contract.

STAGES = [
    Typical(0.9), Typical(0.01), Typical(0.999999), Typical(1.0), Epsilon(), Epsilon(0.999), Epsilon(1e-30), Eta(),
    Eta(0.999), Eta(1e-30), TopH(), TopH(1.0), TopH(1e-9), TopNSigma(), TopNSigma(1e-9), TopNSigma(1e300), TopA(),
    TopA(1.0), TopA(0.0), XTC(), XTC(1.0, 0.5), XTC(1.0, 1e-9), XTC(0.0), DynamicTemperature(0.5, 1.5),
    DynamicTemperature(1e-300, 1e300), DynamicTemperature(2.0, 0.1, 0.3), DynamicTemperature(1.0, 1.0),
    RepetitionPenalty(1.2), RepetitionPenalty(1e-300), RepetitionPenalty(1e300, 2), RepetitionPenalty(1.0),
    FrequencyPenalty(0.5), FrequencyPenalty(-100.0), FrequencyPenalty(100.0), FrequencyPenalty(0.0),
    PresencePenalty(0.5), PresencePenalty(-100.0), PresencePenalty(100.0), PresencePenalty(0.0), NoRepeat(1),
    NoRepeat(2), NoRepeat(3), NoRepeat(10**30), MinLength(3), MinLength(10**30), MinLength(0), Watermark(),
    Watermark(delta=100.0, gamma=0.999), Watermark(key=10**30, gamma=1e-9), Watermark(delta=0.0),
]  # fmt: skip


@pytest.mark.parametrize("stage", STAGES, ids=repr)
def test_processors_conform(stage):
    assert conformance(stage, vocab_sizes=(1, 2, 32)) == []


@given(many_logits, st.sampled_from(STAGES))
@some_examples
def test_none_is_removed_for_good_and_nothing_comes_back(logits, stage):
    for own in (logits, logits.double()):
        output = stage(own, step_after([0, len(logits) - 1, 0]))
        assert output.dtype == own.dtype
        assert set() < kept(output) <= kept(own)


def test_neutral_values_switch_off():
    neutral = (
        Typical(1.0), TopA(0.0), XTC(0.0), DynamicTemperature(1.0, 1.0, 3.0), RepetitionPenalty(1.0, 64),
        FrequencyPenalty(0.0), PresencePenalty(0.0), MinLength(0), Watermark(delta=0.0),
    )  # fmt: skip
    assert Decoder((*neutral, NoRepeat(3)), Sample()).chain.processors == (NoRepeat(3),)
    assert len(Decoder((DynamicTemperature(1.0, 1.1),)).chain.processors) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Typical(0.0), "mass must be a number > 0 and ≤ 1"),
        (lambda: Epsilon(0.0), "e must be a number > 0 and < 1"),
        (lambda: Eta(1.0), "e must be a number > 0 and < 1"),
        (lambda: TopH(1.1), "h must be a number > 0 and ≤ 1"),
        (lambda: TopNSigma(0.0), "n must be a number > 0"),
        (lambda: TopA(-0.1), "a must be a number ≥ 0 and ≤ 1"),
        (lambda: XTC(2.0), "probability must be a number ≥ 0 and ≤ 1"),
        (lambda: XTC(0.5, 0.6), "threshold must be a number > 0 and ≤ 0.5"),
        (lambda: DynamicTemperature(0.0, 1.0), "low must be a number > 0"),
        (lambda: RepetitionPenalty(0.0), "r must be a number > 0"),
        (lambda: RepetitionPenalty(1.1, -1), "window must be an integer ≥ 0"),
        (lambda: FrequencyPenalty(101.0), "c must be a number ≥ -100 and ≤ 100"),
        (lambda: NoRepeat(0), "n must be an integer ≥ 1"),
        (lambda: MinLength(-1), "n must be an integer ≥ 0"),
        (lambda: Watermark(0), "key must be an integer ≥ 1"),
        (lambda: Watermark(gamma=1.0), "gamma must be a number > 0 and < 1"),
    ],
)
def test_ranges(make, message):
    with pytest.raises(UsageError, match=message):
        make()


@pytest.mark.parametrize(
    ("processors", "probs"),
    [
        ((Typical(0.3),), [2 / 3, 1 / 3, 0, 0]),
        ((TopH(0.28), Temperature(3.0)), [1, 0, 0, 0]),
        ((Eta(0.18), Epsilon(0.1)), [2 / 3, 1 / 3, 0, 0]),
        ((TopNSigma(1.21), FrequencyPenalty(math.log(4))), [1 / 3, 2 / 3, 0, 0]),
        ((PresencePenalty(math.log(4)), TopA(0.51)), [1 / 5, 2 / 5, 1 / 5, 1 / 5]),
        ((RepetitionPenalty(2.0), TopK(2)), [1 / 2, 1 / 2, 0, 0]),
        ((XTC(1.0, 0.2), MinP(0.1)), [0, 1 / 2, 1 / 4, 1 / 4]),
        ((NoRepeat(2), DynamicTemperature(0.5, 0.5)), [0, 4 / 6, 1 / 6, 1 / 6]),
        ((TopP(0.7), MinLength(9)), [1, 0, 0, 0]),
    ],
)  # fmt: skip
def test_draws_follow_the_distribution(processors, probs):
    """Call a stage on [1/2, 1/4, 1/8, 1/8] after the story [0, 0]. The second token was generated; token 1 is EOS."""
    chain = Decoder(processors, Sample()).chain
    logits, _ = chain.process(HALVES, step_after([0, 0]), chain.start(Request((0,), 1, 3)))
    assert_drawn_by(lambda position: chain.sampler(logits, step_at(position)), probs, 2_000)


def test_draws_with_xtc_follow_the_mixture():
    chain = Decoder((XTC(0.25, 0.2),), Sample()).chain

    def draw(position):
        return chain.pick(HALVES, step_at(position + 1), chain.start(Request((0,), 1, 3)))[0]

    whole, struck = np.array([4, 2, 1, 1]) / 8, np.array([0, 2, 1, 1]) / 4
    assert_drawn_by(draw, 0.75 * whole + 0.25 * struck, 2_000)


# Every pair of processors there is, those of other files too, on what a trained model says.


@cache
def real_logits():
    """Return a beginning in tokens of the shipped model, its (T, V) logits, and a request that begins at BOS."""
    from tinystory.session.loading import load

    loaded = load()
    token_ids = loaded.tokenizer.encode("Once upon a time, there was a big dog. The big dog was")
    loaded.session.prefill([token_ids[:1]])
    logits = loaded.session.decode([token_ids[1:]])[0]
    open_session = loaded.session.open
    request = Request((token_ids[0],), 16, seed=1, vocabulary=loaded.tokenizer, opener=open_session)
    return token_ids, logits, loaded.session.eos_ids, request


def examples(kind):
    registry = discover(user_folder=None)
    for name, cls, source in registry.classes():
        if cls.kind == kind and source == "tinystory":
            (stage,) = [s for s in parse_spec(cls.example or name, registry).stages if s.name == name]
            yield stage


@pytest.mark.slow
def test_every_pair_of_processors_runs_on_real_logits():
    token_ids, logits, eos_ids, request = real_logits()
    for pair in product(examples("processor"), repeat=2):
        chain = Decoder(pair, Sample()).chain
        assert len(chain.processors) == 2, pair
        state = chain.start(request)
        for n in range(len(token_ids) - 3, len(token_ids)):
            step = Step(request, token_ids[: n + 1], eos_ids)
            processed, _ = chain.process(logits[n - 1], step, state)
            assert not processed.isnan().any(), pair
            token_id, state = chain.pick(logits[n - 1], step, state)
            assert processed[token_id] > -INF, pair
