"""Check that the compiled step equals the torch form, for every level of processors that this one has."""

import copy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from session_pairs import expect_the_same_story, torch_alone

from tinystory.checkpoint.shipped import find_model
from tinystory.decoding.plugins import discover
from tinystory.decoding.spec import parse_spec
from tinystory.model.config import ModelConfig
from tinystory.model.transformer import Transformer
from tinystory.session import kv_cache
from tinystory.session.loading import load, load_without_torch
from tinystory.session.native import NativeSession
from tinystory.session.steps import compiled_step
from tinystory.session.steps.compiled_code import LEVELS, compiled_code, why_missing
from tinystory.writing.generate import Ended, StoryRequest, write

pytestmark = pytest.mark.skipif(compiled_code() is None, reason=f"there is no compiled code: {why_missing()}")

CONFIGS = {
    "grouped": ModelConfig.llama(61, 2, 4, 32, 300, 40, n_kv_head=2),
    "untied, odd widths": ModelConfig.llama(61, 3, 3, 30, 300, 41, tied_head=False, norm_eps=1e-3, rope_theta=100.0),
    "biases": ModelConfig.llama(
        61, 2, 4, 32, 300, 40, attention_bias=True, attention_out_bias=True, ff_bias=True, activation="gelu_tanh"
    ),
    "gpt2": ModelConfig.gpt2(61, 2, 4, 36, 300),
    "gpt2, gelu": ModelConfig.gpt2(61, 3, 4, 64, 300, tied_head=False, activation="gelu"),
    "wide heads": ModelConfig.llama(90, 2, 2, 192, 300, 136, n_kv_head=1, d_head=96),
}
BEST = compiled_code().level if compiled_code() else LEVELS[0]
TRIED = (BEST, *(pytest.param(level, marks=pytest.mark.slow) for level in LEVELS[: LEVELS.index(BEST)]))
CLOSE = {"atol": 3e-5, "rtol": 3e-5}


@pytest.fixture(scope="module", params=TRIED)
def code(request):
    """Return the functions for one level of processors."""
    return compiled_code(request.param)


def sessions(code, config, *, int8=False, bfloat16=False):
    """Return a compiled session, and one that uses only torch."""
    torch.manual_seed(1)
    model = Transformer(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
        if bfloat16:
            parameter.data = parameter.data.bfloat16().float()
    fast, plain = NativeSession(copy.deepcopy(model), int8=int8), NativeSession(model)
    fast.compile(code)
    torch_alone(plain)
    return fast, plain


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_equals_torch_over_a_long_story(code, name, bfloat16, monkeypatch):
    monkeypatch.setattr(kv_cache, "_FULL_ROW_BYTES", 0)  # the cache starts with 256 positions
    fast, plain = sessions(code, CONFIGS[name], bfloat16=bfloat16)
    n_kinds = {matrix.kind for layer in fast._packed._model.layers[:1] for matrix in (layer.qkv, layer.down)}
    assert n_kinds == {1 if bfloat16 else 0}
    prompt = [n % 60 for n in range(70)]  # more tokens than one call takes
    expect_the_same_story(fast, plain, prompt, **CLOSE)


@settings(deadline=None, max_examples=25)
@given(data=st.data())
@pytest.mark.parametrize("name", CONFIGS)
def test_any_history_equals_torch(code, name, data):
    """The history has rows of one or several lengths, one or several new tokens, and rows that come and go."""
    fast, plain = (one.open() for one in sessions(code, CONFIGS[name]))
    ids = st.integers(0, 60)
    prompts = data.draw(st.lists(st.lists(ids, min_size=1, max_size=9), min_size=1, max_size=7))
    torch.testing.assert_close(fast.prefill(prompts), plain.prefill(prompts), **CLOSE)
    for _ in range(2):
        order = data.draw(st.lists(st.integers(0, len(prompts) - 1), min_size=1, max_size=9))
        prompts = [prompts[row] for row in order]
        new = torch.tensor(data.draw(st.lists(ids, min_size=len(order) * 3, max_size=len(order) * 3))).view(-1, 3)
        new = new[:, : data.draw(st.integers(1, 3))]
        for session in (fast, plain):
            session.reorder(torch.tensor(order))
        torch.testing.assert_close(fast.decode(new), plain.decode(new), **CLOSE)
        torch.testing.assert_close(fast.hidden(), plain.hidden(), **CLOSE)


@pytest.mark.parametrize("name", ["grouped", "untied, odd widths", "wide heads", "biases", "gpt2"])
def test_int8_multiplies_the_very_integers(code, name):
    """The reference is a float model with the rounded weights; nothing else is rounded."""
    _expect_the_very_integers(code, CONFIGS[name])


@pytest.mark.parametrize("width", [1, 2, 15, 17, 33, 36, 40, 50, 72, 172, 200, 300])
def test_int8_takes_any_width(code, width):
    """The widths are those of both matrices of the feed-forward part, and of attention where it can have them."""
    _expect_the_very_integers(code, ModelConfig.llama(61, 1, 1, width + width % 2, 48, width))


def _expect_the_very_integers(code, config):
    fast, plain = sessions(code, config, int8=True)
    rounded = NativeSession(copy.deepcopy(plain.model), int8=True)
    for layer, written in zip(rounded._layers, plain._layers, strict=True):
        for matrix in ("qkv", "o", "up", "down"):
            integers, scale = getattr(layer, matrix).weight.integers()
            getattr(written, matrix).weight.copy_(torch.from_numpy(integers * scale[:, None]))
    prompt = [n % 60 for n in range(11)]
    torch.testing.assert_close(fast.prefill([prompt]), plain.prefill([prompt]), **CLOSE)
    for n_rows in (1, 2, 5):
        for session in (fast, plain):
            session.reorder([0] * n_rows)
        ids = list(range(n_rows))
        torch.testing.assert_close(fast.decode(ids), plain.decode(ids), **CLOSE)


@pytest.mark.parametrize("finite", [True, False])
def test_numbers_beyond_bounds_stay_what_they_are(code, finite):
    """Softmax and SiLU may overflow in between. An activation that overflows gives NaN, which chains refuse."""
    torch.manual_seed(1)
    model = Transformer(CONFIGS["grouped"]).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=30.0)
    if not finite:
        model.blocks[0].ff.down.weight.data.fill_(3e38)
    fast, plain = NativeSession(copy.deepcopy(model)), NativeSession(model)
    fast.compile(code)
    torch_alone(plain)
    for session in (fast, plain):
        assert bool(session.prefill([[1, 2, 3]]).isfinite().all()) == finite
        assert bool(session.decode([4]).isfinite().all()) == finite


def test_wide_prompts_are_fed_in_pieces(code, monkeypatch):
    fast, plain = sessions(code, CONFIGS["grouped"])
    prompts = [[n % 60 for n in range(start, start + 9)] for start in range(5)]
    for most in (1, 7, 64):
        monkeypatch.setattr(compiled_step, "_MOST_TOKENS", most)
        torch.testing.assert_close(fast.open().prefill(prompts), plain.open().prefill(prompts), **CLOSE)


@pytest.mark.parametrize("spec", ["greedy", "temperature 0.9 | top-k 40 | sample 0.8"])
def test_the_shipped_model_writes_the_same_stories(spec):
    """This holds with and without torch. Other tests compare these stories with those of the NumPy step."""
    name, header = find_model("default")
    decoder = parse_spec(spec, discover(user_folder=None))
    prompts = ["Once upon a time", "", "Tim had a red ball. He " * 8, 'The sun was hot and Mia said, "']
    requests = [
        StoryRequest(prompt, decoder, seed=seed, max_new_tokens=60) for seed, prompt in enumerate(prompts, start=1)
    ]
    found = []
    for model in (load(name, engine="numpy"), load(name), load_without_torch(name, header)):
        events = write(model.session, model.tokenizer, requests)
        found.append({event.story: event.result.token_ids for event in events if isinstance(event, Ended)})
    assert found[0] == found[1] == found[2]
    assert len(found[0][0]) > 20


def test_int8_loses_nothing_that_counts(stories):
    from tinystory.evaluation.perplexity import evaluate

    bits = []
    for dtype in ("float32", "int8"):
        model = load("default", dtype)
        bits.append(evaluate(model.session, model.tokenizer, stories[:12]).bits_per_byte)
    assert 0 < abs(bits[0] - bits[1]) < 0.005


def test_memory_begins_at_a_cache_line():
    for n_bytes in (64, 4096, 1 << 20):
        memory = compiled_step._aligned(n_bytes, np.float32)
        assert memory.ctypes.data % 64 == 0
        assert memory.nbytes == n_bytes


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("gcc") or sys.platform != "linux", reason="needs gcc's sanitizers")
def test_the_step_keeps_within_its_arrays():
    """`python tests/support/sanitize_step.py -n 1000` tries more models."""
    script = Path(__file__).resolve().parents[1] / "support" / "sanitize_step.py"
    done = subprocess.run([sys.executable, str(script), "-n", "25"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.count("no fault")) == (0, 3), done.stderr
