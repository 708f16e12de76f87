"""Check int8 weights: near the float model, in both families, and without the matrices in floats."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinystory.checkpoint.shipped import find_model
from tinystory.errors import UsageError
from tinystory.model.config import ModelConfig
from tinystory.model.transformer import Transformer
from tinystory.session.loading import load, load_header
from tinystory.session.native import NativeSession
from tinystory.session.steps.int8 import Int8Matrix

CONFIGS = {
    "llama": ModelConfig.llama(61, 2, 4, 64, 48, 96, n_kv_head=2),
    "llama-bias": ModelConfig.llama(61, 2, 2, 64, 48, 96, tied_head=False, attention_bias=True),
    "gpt2": ModelConfig.gpt2(61, 2, 4, 64, 48),
    "llama, inner width of stories260K": ModelConfig.llama(61, 2, 8, 64, 48, 172, n_kv_head=4),
    "llama, odd widths": ModelConfig.llama(61, 2, 3, 54, 48, 101),
    "gpt2, odd widths": ModelConfig.gpt2(61, 2, 3, 54, 48),
}


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 300), st.integers(1, 40), st.integers(0, 10_000))
def test_a_product_is_within_the_rounding(n_out, n_in, n_columns, seed):
    """The bound is half a step per weight, and 2^-8 of each activation and result. One row is zero, one very large."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(n_out, n_in, generator=generator)
    weight[0] = 0
    weight[-1] *= 1e4
    x = torch.randn(n_columns, n_in, generator=generator)
    matrix = Int8Matrix(weight)
    exact, got = x @ weight.T, matrix(x)
    step = weight.abs().amax(dim=1) * (1 + 2**-7) / 127
    allowed = x.abs().sum(dim=1, keepdim=True) * step / 2 + 2**-7 * (x.abs() @ weight.abs().T) + 2**-7 * exact.abs()
    assert got.shape == exact.shape
    assert got.dtype == x.dtype
    assert ((got - exact).abs() <= allowed + 1e-6).all()
    np.testing.assert_allclose(matrix.columns(x.T.numpy()), got.T, atol=1e-6 + float(allowed.max()))
    np.testing.assert_array_equal(matrix.vector(x[0].numpy()), matrix(x[:1])[0])


@pytest.mark.parametrize(("dtype", "of_weights"), [(torch.float32, 1e-5), (torch.bfloat16, 2**-8)])
def test_every_width_gives_the_dequantised_product(dtype, of_weights):
    """The process once died with widths that are no multiple of 16: the kernel of torch reads 16 numbers at once.

    The vectors are exact in bfloat16, so only the sum (float32) and the result (bfloat16) are rounded. Vectors in
    bfloat16 also round the weights, if there are many. The vectors are a part of a larger array.
    """
    for n_in in range(1, 301):
        n_out = 1 + n_in % 35
        generator = torch.Generator().manual_seed(n_in)
        matrix = Int8Matrix(torch.randn(n_in, n_out, generator=generator).T)
        vectors = torch.randn(40, n_in + 5, generator=generator).bfloat16().to(dtype)[:, 3 : n_in + 3]
        integers, scale = map(torch.from_numpy, matrix.integers())
        assert integers.shape == (n_out, n_in)
        weight = integers.double() * scale.double()[:, None]
        for n_rows in (0, 1, 2, 7, 40):  # for 40 rows the weights become floats
            x = vectors[:n_rows]
            exact, got = x.double() @ weight.T, matrix(x)
            assert (got.dtype, got.shape) == (dtype, (n_rows, n_out))
            allowed = 2**-8 * exact.abs() + of_weights * (x.double().abs() @ weight.abs().T)
            assert ((got - exact).abs() <= allowed).all(), (n_in, n_out, n_rows)


@pytest.mark.parametrize("name", CONFIGS)
def test_sessions_stay_near_the_floats(name):
    torch.manual_seed(2)
    model = Transformer(CONFIGS[name]).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    exact, rounded = NativeSession(copy.deepcopy(model)), NativeSession(model, int8=True)
    assert all(block.attn.q.weight.numel() == block.ff.down.weight.numel() == 0 for block in model.blocks)
    prompts = [[1, 2, 3, 4], [5, 6]]
    histories = []
    for session in (exact, rounded):
        logits = [session.prefill(prompts), session.decode([7, 8])]
        session.reorder([1])
        # One row, and more tokens than the kernel is used for.
        logits += [session.decode([9]), session.decode([[3] * 36])[:, -1]]
        assert all(one.dtype == torch.float32 for one in logits)
        histories.append(torch.cat([one.log_softmax(dim=-1) for one in logits]))
    divergence = (histories[0].exp() * (histories[0] - histories[1])).sum(dim=-1)
    assert not histories[0].equal(histories[1])
    assert divergence.max() < 0.01


def test_the_shipped_model_loses_nothing_that_counts(stories):
    """Bits per byte are within 0.005 of float32; docs/performance.md has the figure for 3,000 stories."""
    from tinystory.evaluation.perplexity import evaluate

    bits = []
    for dtype in ("float32", "int8"):
        model = load("default", dtype)
        assert model.dtype == dtype
        bits.append(evaluate(model.session, model.tokenizer, stories[:12]).bits_per_byte)
    assert abs(bits[0] - bits[1]) < 0.005
    assert bits[0] != bits[1]


def test_a_model_that_is_not_ours_is_refused():
    """The user once saw the message of transformers, about a damaged checkpoint."""
    name, header = find_model("default")
    with pytest.raises(UsageError, match="int8 is for Llama and GPT-2 models; default runs in float32, bfloat16 or"):
        load_header(name, dataclasses.replace(header, config=None), "int8", "cpu")


def test_another_device_is_refused():
    with pytest.raises(UsageError, match=r"int8 runs on the CPU only|not available"):
        load("default", "int8", "meta")
