"""Gradients written out: those that autograd finds, part by part and for a whole model."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tinystory.data.batches import BatchPlan
from tinystory.data.prepare import tokenize
from tinystory.model import gradients
from tinystory.model.config import ModelConfig
from tinystory.model.gradients import rms_norm, rotate_halves, swiglu
from tinystory.model.transformer import Transformer, rope_tables, rotate
from tinystory.training.step import loss_sum

MODELS = {
    "llama": ModelConfig.llama(300, 2, 4, 32, 64, 48),
    "llama, grouped heads": ModelConfig.llama(300, 2, 4, 32, 64, 48, n_kv_head=2),
    "llama, gelu and biases": ModelConfig.llama(
        300, 1, 2, 16, 64, 48, activation="gelu_tanh", attention_bias=True, attention_out_bias=True, ff_bias=True
    ),
    "gpt2": ModelConfig.gpt2(300, 2, 4, 32, 64),
}


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def assert_same(ours, theirs, *inputs):
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)
    weights = drawn(*ours.shape, seed=9).detach()
    both = (torch.autograd.grad(value, inputs, weights) for value in (ours, theirs))
    torch.testing.assert_close(*both, rtol=1e-10, atol=1e-11)


@settings(deadline=None, max_examples=20)
@given(rows=st.integers(1, 3), positions=st.integers(1, 5), width=st.integers(1, 9))
def test_norm_and_gate(rows, positions, width):
    x, y, weight = drawn(rows, positions, width), drawn(rows, positions, width, seed=1), drawn(width, seed=2)
    assert_same(rms_norm(x, weight, 1e-3, x.dtype), F.rms_norm(x, (width,), weight, 1e-3), x, weight)
    assert_same(swiglu(x, y), F.silu(x) * y, x, y)


@pytest.mark.parametrize("heads_inside", [False, True])
def test_rotation(heads_inside):
    """It does not matter if positions or heads come first in memory."""
    config = ModelConfig.llama(8, 1, 2, 12, 64, 4)
    x = drawn(2, 7, 3, 6).transpose(1, 2) if heads_inside else drawn(2, 3, 7, 6)
    cos, sin = rope_tables(config, torch.arange(7)[None, None], x.dtype)
    first, second = x.chunk(2, dim=-1)
    assert_same(rotate_halves(x, cos, sin), x * cos + torch.cat((-second, first), dim=-1) * sin, x)
    with torch.no_grad():
        torch.testing.assert_close(rotate(x, cos, sin), rotate_halves(x, cos, sin))


def step(model, batch, bf16=False):
    """Loss per token and gradients, by name; dropout as after one seed."""
    torch.manual_seed(5)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        loss = loss_sum(model, batch) / batch.n_tokens
        found = torch.autograd.grad(loss, list(model.parameters()))
    return loss.detach(), dict(zip(dict(model.named_parameters()), found, strict=True))


def prepared(config, dropout=0.0):
    model = Transformer(config, dropout)
    model.init_weights(0)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():  # none is zero, and norms are not one
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def batch(stories, tokenizer):
    plan = BatchPlan(tokenize(stories, tokenizer), 64, 4, seed=1)
    return plan.collate(plan.epoch()[0])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_step_is_that_of_the_plain_model(batch, monkeypatch, name, dropout):
    model, batch = prepared(MODELS[name], dropout).double(), batch.joined()
    ours = step(model, batch)
    monkeypatch.setattr("tinystory.model.transformer.written_out", lambda x: False)
    torch.testing.assert_close(ours, step(model, batch), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", MODELS)
def test_stories_joined_are_stories_behind_a_mask(batch, name):
    model = prepared(MODELS[name]).double()
    torch.testing.assert_close(step(model, batch.joined()), step(model, batch), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", MODELS)
def test_a_step_in_bfloat16_is_close_to_the_exact_one(batch, name):
    model, batch = prepared(MODELS[name]), batch.joined()
    (loss, found), (exact_loss, exact) = step(model, batch, bf16=True), step(model, batch)
    assert abs(loss - exact_loss) < 0.01
    for parameter, gradient in found.items():
        assert gradient.dtype == torch.float32
        # The softmax leaves a bias of the keys without effect: its gradient is rounding alone.
        assert (gradient - exact[parameter]).norm() < 0.05 * exact[parameter].norm() + 1e-4, parameter


def test_it_is_for_eager_training_on_a_cpu_alone():
    x = torch.zeros(1)
    assert gradients.written_out(x)
    assert not gradients.written_out(x.to("meta"))
    with torch.no_grad():
        assert not gradients.written_out(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert gradients.product_dtype(x) == torch.bfloat16
        with torch.no_grad():
            assert gradients.product_dtype(x) == torch.float32
    assert gradients.product_dtype(x) == torch.float32
