"""The watermark: the green lists of transformers, the detector, its p-values, and whole texts."""

import math
import sys
from fractions import Fraction
from functools import cache
from itertools import pairwise
from statistics import fmean

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from logits_cases import INF, assert_parity, enough_examples, logits_after_a_story, some_examples, step_after

from tinystory.decoding import Commit, Decoder, Request
from tinystory.decoding.loop import run
from tinystory.errors import CheckpointError, UsageError
from tinystory.testing import ToySession
from tinystory_decoders.sample import Sample
from tinystory_decoders.watermark import Watermark, binomial_tail, detect, green_list

keys = st.integers(1, 2**63) | st.sampled_from([1, 15485863, 10**30 + 7])


@cache
def hf_processor():
    """Return one for all cases, because its table of a million numbers takes time; `lefthash` does not read it."""
    from transformers.generation.logits_process import WatermarkLogitsProcessor

    return WatermarkLogitsProcessor(vocab_size=4, device="cpu")


def hf_with(vocab_size, gamma, delta, key):
    hf = hf_processor()
    hf.vocab_size, hf.greenlist_size, hf.bias, hf.hash_key = vocab_size, int(vocab_size * gamma), delta, key
    return hf


@pytest.mark.parity
@given(logits_after_a_story(), keys, st.floats(0, 10), st.floats(0.01, 0.99) | st.just(0.25))
@enough_examples
def test_watermark_parity(case, key, delta, gamma):
    logits, token_ids = case
    assert_parity(Watermark(key, delta, gamma), hf_with(len(logits), gamma, delta, key), logits, token_ids)


@pytest.mark.parity
@pytest.mark.parametrize("vocab_size", [2048, 50257])
def test_green_lists_of_whole_vocabularies(vocab_size):
    hf = hf_with(vocab_size, 0.25, 2.0, 15485863)
    for token_id in (0, 1, vocab_size - 1):
        assert green_list(token_id, vocab_size).equal(hf._get_greenlist_ids(torch.tensor([5, token_id])))


@pytest.mark.parity
@pytest.mark.parametrize("seed", range(5))
def test_detection_agrees_with_transformers(seed):
    from transformers import GPT2Config, WatermarkDetector

    options = {
        "greenlist_ratio": 0.25,
        "bias": 2.0,
        "hashing_key": 77,
        "seeding_scheme": "lefthash",
        "context_width": 1,
    }
    detector = WatermarkDetector(GPT2Config(vocab_size=64), "cpu", options, ignore_repeated_ngrams=True)
    token_ids = torch.randint(1, 64, (300,), generator=torch.Generator().manual_seed(seed))
    theirs = detector(token_ids[None], return_dict=True)
    ours = detect(token_ids.tolist(), 64, key=77)
    assert ours.n_scored == theirs.num_tokens_scored[0]
    assert ours.n_green == theirs.num_green_tokens[0]
    assert ours.z == pytest.approx(theirs.z_score[0])


def test_by_hand():
    """Two green tokens of eight are raised, the removed one stays removed, and another key raises others."""
    green = set(green_list(3, 8, key=5).tolist())
    assert len(green) == 2
    logits = torch.zeros(8)
    logits[min(green)] = -INF
    output = Watermark(key=5, delta=1.5)(logits, step_after([1, 3]))
    assert output.tolist() == [-INF if i == min(green) else 1.5 * (i in green) for i in range(8)]
    assert any(set(green_list(3, 8, key=key).tolist()) != green for key in range(6, 10))


def test_what_makes_two_keys_one():
    """This is a fact about torch's generator; the docstring of the module mentions it."""
    assert green_list(3, 64, key=5).equal(green_list(3, 64, key=5 + 2**32))
    assert green_list(0, 64, key=5).equal(green_list(0, 64, key=6))


def test_repeated_pairs_count_once():
    once = detect([1, 2, 3, 1], 8)
    assert once.n_scored == 3
    assert detect([1, 2, 3, 1, 2, 3, 1], 8) == once


def test_what_is_counted():
    token_ids = [1, 2, 3, 3, 5, 0, 2, 7, 7, 7]
    found = detect(token_ids, 8, gamma=0.5)
    pairs = set(pairwise(token_ids))
    assert found.n_scored == len(pairs) == 8
    assert found.n_green == sum(b in green_list(a, 8, gamma=0.5).tolist() for a, b in pairs)
    assert found.z == pytest.approx((found.n_green - 4) / math.sqrt(2))


def test_the_share_is_that_of_the_list():
    """A quarter of ten tokens is two of ten, the share by chance. Without green tokens there is no evidence."""
    token_ids = [3, 1, 4, 1, 5, 9, 2, 6]
    found = detect(token_ids, 10)
    assert found.p_value == pytest.approx(binomial_tail(found.n_scored, found.n_green, 0.2))
    nothing = detect(token_ids, 10, gamma=0.05)
    assert (nothing.n_green, nothing.z, nothing.p_value) == (0, 0.0, 1.0)


@pytest.mark.parametrize("token_ids", [[], [5]])
def test_a_text_without_a_pair_is_refused(token_ids):
    with pytest.raises(ValueError, match=f"the text has {len(token_ids)}"):
        detect(token_ids, 8)


@given(st.integers(1, 120), st.data(), st.sampled_from([Fraction(1, 4), Fraction(1, 2), Fraction(9, 10)]))
@some_examples
def test_the_binomial_tail_is_exact(n, data, p):
    k = data.draw(st.integers(0, n))
    exact = sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1))
    assert binomial_tail(n, k, float(p)) == pytest.approx(float(exact), rel=1e-9)


def test_the_binomial_tail_of_long_texts():
    """Far from the mean, the normal approximation is wrong by orders of magnitude. Near the mean it is right."""
    assert binomial_tail(100_000, 25_000, 0.25) == pytest.approx(0.5, abs=0.01)
    assert binomial_tail(200, 200, 0.25) == pytest.approx(4.0**-200, rel=1e-9)
    assert binomial_tail(100_000, 100_000, 0.25) == 0.0


def test_p_values_of_texts_without_a_watermark_are_what_they_say():
    """About 40 of 400 random texts have p ≤ 0.1. Ties of a discrete count make them fewer, never many more."""
    generator = torch.Generator().manual_seed(1)
    texts = torch.randint(0, 512, (400, 101), generator=generator).tolist()
    p_values = [detect(text, 512).p_value for text in texts]
    assert 20 <= sum(p <= 0.1 for p in p_values) <= 58
    assert sum(p <= 0.001 for p in p_values) <= 3
    assert fmean(p_values) == pytest.approx(0.5, abs=0.08)


def story(session, decoder, seed, n_tokens, prompt=(0,)):
    events = run(session, [(decoder, Request(tuple(prompt), n_tokens, seed))])
    token_ids = [token.id for _, event in events if isinstance(event, Commit) for token in event.tokens]
    assert len(token_ids) == n_tokens
    return token_ids


def test_a_toy_story_is_recognised_with_its_own_key_only():
    session = ToySession(vocab_size=256, eos_logit=-INF, memory=8)
    token_ids = story(session, Decoder((Watermark(key=42, delta=6.0),), Sample()), 1, 120)
    assert detect(token_ids, 256, key=42).p_value < 1e-9
    assert detect(token_ids, 256, key=43).p_value > 1e-3


@pytest.mark.slow
def test_stories_of_the_shipped_model_are_recognised_and_plain_ones_are_not():
    from tinystory.session.loading import load

    loaded = load()
    session, prompt = loaded.session, loaded.tokenizer.encode("Once upon a time")
    session.eos_ids = frozenset()  # 200 tokens each
    for seed in range(20):
        for marked, as_it_should in [(True, lambda p: p < 1e-6), (False, lambda p: p >= 1e-4)]:
            processors = (Watermark(delta=4.0, gamma=0.25),) if marked else ()
            token_ids = story(session, Decoder(processors, Sample(1.0)), seed, 200, prompt)
            found = detect(token_ids, session.vocab_size)
            assert as_it_should(found.p_value), (seed, marked, found)


# The script.


@pytest.fixture
def script(load_script, monkeypatch, capsys):
    module = load_script("detect_watermark")

    def run_script(*args):
        monkeypatch.setattr(sys, "argv", ["detect_watermark", *map(str, args)])
        code = module.main()
        return code, *capsys.readouterr()

    run_script.module = module
    return run_script


def test_the_script_reads_a_text(script, tokenizer, checkpoint, tmp_path):
    path = tmp_path / "story.txt"
    path.write_text("Once upon a time, Tim found a kite near the hill.", encoding="utf-8")
    code, out, err = script(path, "-m", checkpoint, "--key", 7, "--gamma", 0.5)
    found = detect(tokenizer.encode(path.read_text(encoding="utf-8"))[1:], 300, 7, 0.5)
    assert (code, err) == (0, "")
    assert f"tokens scored  {found.n_scored}\n" in out
    assert f"green          {found.n_green} (" in out
    assert f"z              {found.z:.2f}\n" in out
    assert f"p              {found.p_value:.3g}\n" in out


@pytest.mark.parametrize(
    ("text", "args", "message", "code"),
    [
        (" \n", (), "is empty; give the text", UsageError.exit_code),
        ("a", (), "a single token", UsageError.exit_code),
        ("a text", ("--gamma", "1.5"), "gamma must be a number > 0 and < 1", UsageError.exit_code),
        ("a text", ("-m", "./nowhere"), "nowhere", CheckpointError.exit_code),
        (None, (), "cannot be read", UsageError.exit_code),
    ],
)
def test_what_the_script_refuses(script, checkpoint, tmp_path, text, args, message, code):
    path = tmp_path / "story.txt"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    found, out, err = script(path, "-m", checkpoint, *args)
    assert (found, out) == (code, "")
    assert err.startswith("detect_watermark: ")
    assert message in err
