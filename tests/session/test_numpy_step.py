"""Check that the NumPy form of a step equals the torch form."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from session_pairs import expect_the_same_story, torch_alone

from tinystory.model.config import ModelConfig
from tinystory.model.transformer import Transformer
from tinystory.session import kv_cache
from tinystory.session.native import NativeSession
from tinystory.session.steps import numpy_step
from tinystory.session.steps.numpy_step import beats_torch

CONFIGS = [
    ModelConfig.llama(61, 2, 4, 32, 300, 40, n_kv_head=2),
    ModelConfig.llama(61, 3, 3, 24, 300, 40, tied_head=False, norm_eps=1e-3, rope_theta=100.0),
    ModelConfig.llama(61, 1, 4, 32, 300, 40, n_kv_head=1, d_head=16),
]


def sessions(config, dtype, std=0.3):
    """Return a session that computes steps in NumPy, and one that must use torch."""
    torch.manual_seed(1)
    model = Transformer(config).to(dtype).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    fast = NativeSession(model)
    assert fast._most_tokens
    return fast, torch_alone(NativeSession(model))


PAIRS = [sessions(config, torch.float64) for config in CONFIGS]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("config", CONFIGS, ids=["grouped", "untied", "one kv head"])
def test_equals_torch_over_a_long_story(config, dtype, monkeypatch):
    monkeypatch.setattr(kv_cache, "_FULL_ROW_BYTES", 0)  # the cache starts with 256 positions
    fast, plain = sessions(config, dtype)
    expect_the_same_story(fast, plain, [1, 2, 3], atol=1e-4, rtol=1e-4)


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_several_tokens_equal_torch(data):
    """The history has rows of one or several lengths, new tokens, grouped heads, and rows that come and go."""
    fast, plain = PAIRS[data.draw(st.integers(0, len(PAIRS) - 1))]
    ids = st.integers(0, 60)
    prompts = data.draw(st.lists(st.lists(ids, min_size=1, max_size=8), min_size=1, max_size=5))
    close = {"atol": 1e-9, "rtol": 1e-9}
    torch.testing.assert_close(fast.prefill(prompts), plain.prefill(prompts), **close)
    for _ in range(3):
        n_rows = len(prompts)
        order = data.draw(st.lists(st.integers(0, n_rows - 1), min_size=1, max_size=5))
        prompts = [prompts[row] for row in order]
        new = torch.tensor(data.draw(st.lists(ids, min_size=len(order) * 3, max_size=len(order) * 3))).view(-1, 3)
        new = new[:, : data.draw(st.integers(1, 3))]
        for session in (fast, plain):
            session.reorder(torch.tensor(order))
        got, expected = fast.decode(new), plain.decode(new)
        torch.testing.assert_close(got, expected, **close)
        torch.testing.assert_close(fast.hidden().double(), plain.hidden().double(), **close)


def test_a_wide_matrix_is_multiplied_in_pieces(monkeypatch):
    matrix, x = np.random.default_rng(0).normal(size=(7, 5)), np.random.default_rng(1).normal(size=(5, 3))
    for largest in (1, 30, 45, 2**18):
        monkeypatch.setattr(numpy_step, "_LARGEST_PRODUCT", largest)
        np.testing.assert_allclose(numpy_step.product(matrix, x), matrix @ x)


def test_huge_activations_do_not_warn():
    fast, plain = sessions(CONFIGS[0], torch.float32, std=30.0)
    for one in (fast, plain):
        one.prefill([[1]])
    token = torch.tensor([2])
    assert fast.decode(token).isfinite().all()
    assert plain.decode(token).isfinite().all()


def test_only_small_plain_llama_models_take_it():
    assert beats_torch(CONFIGS[0])
    assert not beats_torch(ModelConfig.gpt2(61, 2, 4, 32, 24))
    assert not beats_torch(ModelConfig.llama(61, 2, 4, 32, 24, 40, attention_bias=True))
    assert not beats_torch(ModelConfig.llama(50257, 12, 12, 768, 1024, 2048))
    model = Transformer(CONFIGS[0]).to(torch.bfloat16)
    assert not NativeSession(model)._most_tokens
