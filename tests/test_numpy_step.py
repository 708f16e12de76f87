"""The NumPy form of a step equals the torch form."""

import pytest
import torch

from tinystory import session as session_module
from tinystory.config import ModelConfig
from tinystory.model import Transformer
from tinystory.numpy_step import pays
from tinystory.session import NativeSession

CONFIGS = [
    ModelConfig.llama(61, 2, 4, 32, 300, 40, n_kv_head=2),
    ModelConfig.llama(61, 3, 3, 24, 300, 40, tied_head=False, norm_eps=1e-3, rope_theta=100.0),
    ModelConfig.llama(61, 1, 4, 32, 300, 40, n_kv_head=1, d_head=16),
]


def sessions(config, dtype, std=0.3):
    """One session that steps in NumPy and one that may not."""
    torch.manual_seed(1)
    model = Transformer(config).to(dtype).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    fast, plain = NativeSession(model), NativeSession(model)
    assert fast._uses_numpy
    plain._uses_numpy = False
    return fast, plain


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("config", CONFIGS, ids=["grouped", "untied", "one kv head"])
def test_equals_torch_over_a_long_story(config, dtype, monkeypatch):
    """Logits, hidden states and the cache itself, while the cache grows and after a rewind and a reorder."""
    monkeypatch.setattr(session_module, "_FULL_CACHE_BYTES", 0)  # start with 256 positions
    fast, plain = sessions(config, dtype)
    close = {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(fast.prefill([[1, 2, 3]]), plain.prefill([[1, 2, 3]]))
    for n in range(270):
        token = torch.tensor([n % 61])
        torch.testing.assert_close(fast.decode(token), plain.decode(token), **close)
        torch.testing.assert_close(fast.hidden(), plain.hidden(), **close)
    for one in (fast, plain):
        one.rewind([200])
        one.reorder(torch.tensor([0, 0]))
        one.decode(torch.tensor([5, 6]))
        one.reorder(torch.tensor([1]))
    got, expected = (one.decode(torch.tensor([[7]])) for one in (fast, plain))
    assert got.shape == (1, 1, 61)
    torch.testing.assert_close(got, expected, **close)
    for (keys, values), (keys_2, values_2) in zip(fast._caches, plain._caches, strict=True):
        torch.testing.assert_close((keys, values), (keys_2, values_2), **close)


def test_huge_activations_do_not_warn():
    fast, plain = sessions(CONFIGS[0], torch.float32, std=30.0)
    for one in (fast, plain):
        one.prefill([[1]])
    token = torch.tensor([2])
    assert fast.decode(token).isfinite().all()
    assert plain.decode(token).isfinite().all()


def test_only_small_plain_llama_models_take_it():
    assert pays(CONFIGS[0])
    assert not pays(ModelConfig.gpt2(61, 2, 4, 32, 24))
    assert not pays(ModelConfig.llama(61, 2, 4, 32, 24, 40, attention_bias=True))
    assert not pays(ModelConfig.llama(50257, 12, 12, 768, 1024, 2048))
    model = Transformer(CONFIGS[0]).to(torch.bfloat16)
    assert not NativeSession(model)._uses_numpy
