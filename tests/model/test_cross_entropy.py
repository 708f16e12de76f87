"""Check that head and cross-entropy together give the same numbers as apart, without all logits at once."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tinystory.data.batches import BatchPlan
from tinystory.data.prepare import tokenize
from tinystory.model import cross_entropy
from tinystory.model.config import ModelConfig
from tinystory.model.cross_entropy import IGNORE, head_cross_entropy, stretch
from tinystory.model.transformer import Transformer
from tinystory.training.distributed import Ranks
from tinystory.training.step import TrainConfig, backward, evaluate_loss, loss_sum

N, C, V = 11, 6, 40


class Largest(TorchDispatchMode):
    """The size of the largest result of any operation, in numbers."""

    n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.n = max([self.n, *(x.numel() for x in torch.utils._pytree.tree_leaves(out) if torch.is_tensor(x))])
        return out


def drawn(dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(N, C, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(V, C, generator=generator, dtype=dtype).requires_grad_()
    labels = torch.randint(V, (N,), generator=generator)
    labels[[0, 4, 10]] = IGNORE
    return hidden, weight, labels


def apart(hidden, weight, labels):
    return F.cross_entropy(F.linear(hidden, weight).double(), labels, ignore_index=IGNORE, reduction="sum")


def found_by(loss_of, hidden, weight, labels):
    """Return a loss, scaled as in a training step, and its gradients."""
    loss = loss_of(hidden, weight, labels) / 7
    return loss.detach(), *torch.autograd.grad(loss, (hidden, weight))


@pytest.mark.parametrize("tokens", [1, 4, N, 100])
def test_loss_and_gradients_are_those_of_head_and_loss_apart(monkeypatch, tokens):
    monkeypatch.setattr(cross_entropy, "_LOGITS_AT_ONCE", tokens * V)
    inputs = drawn()
    torch.testing.assert_close(found_by(head_cross_entropy, *inputs), found_by(apart, *inputs), rtol=1e-12, atol=1e-12)
    hidden, weight, labels = inputs
    loss, *gradients = found_by(head_cross_entropy, hidden, weight, torch.full_like(labels, IGNORE))
    assert loss == 0
    assert not any(gradient.any() for gradient in gradients)


def test_under_autocast_the_products_are_bfloat16_and_the_rest_is_not(monkeypatch):
    monkeypatch.setattr(cross_entropy, "_LOGITS_AT_ONCE", 4 * V)
    inputs = drawn(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = found_by(head_cross_entropy, *inputs), found_by(apart, *inputs)
    assert {tensor.dtype for tensor in ours} == {torch.float32}
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-6, atol=0, check_dtype=False)
    torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02, check_dtype=False)
    exact = found_by(apart, *inputs)
    assert not torch.allclose(ours[0].double(), exact[0], rtol=1e-6)


def test_a_second_backward_gives_the_same_gradients():
    """The gradients are computed in the forward pass and kept."""
    hidden, weight, labels = drawn()
    loss = head_cross_entropy(hidden, weight, labels)
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss * 2, (hidden, weight)), tuple(2 * g for g in first))


def test_many_tokens_are_longer_stretches_rather_than_more_of_them():
    assert stretch(2048, 50257) == 2**23 // 50257
    assert stretch(2**20, 50257) == 2**16
    assert stretch(5, 2**24) == 1


def test_on_a_cpu_stretches_are_those_that_its_cache_holds():
    assert stretch(4096, 2048, in_cache=True) == 512 < stretch(4096, 2048)
    assert stretch(2048, 50257, in_cache=True) == stretch(2048, 50257)
    assert stretch(2**20, 2048, in_cache=True) == 2**16


@pytest.fixture(scope="module")
def plan(stories, tokenizer):
    return BatchPlan(tokenize(stories, tokenizer), 64, 4, seed=1)


@pytest.mark.parametrize(
    "config", [ModelConfig.llama(300, 1, 2, 8, 64, 12), ModelConfig.gpt2(300, 1, 2, 8, 64)], ids=["llama", "gpt2"]
)
def test_a_models_loss_has_the_gradients_of_its_logits_loss(plan, monkeypatch, config):
    monkeypatch.setattr(cross_entropy, "_LOGITS_AT_ONCE", 10 * 300)
    model = Transformer(config).double()
    model.init_weights(0)
    batch = plan.collate(plan.epoch()[0])
    logits = model(batch.token_ids, batch.positions, batch.mask())
    assert logits.shape == (*batch.labels.shape, 300)
    losses = loss_sum(model, batch), F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="sum")
    torch.testing.assert_close(*losses, rtol=1e-12, atol=0)
    ours, theirs = (torch.autograd.grad(loss, list(model.parameters())) for loss in losses)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_neither_a_step_nor_a_validation_holds_all_logits(plan, monkeypatch):
    monkeypatch.setattr(cross_entropy, "_LOGITS_AT_ONCE", 16 * 300)
    model = Transformer(ModelConfig.llama(300, 1, 1, 8, 64, 8))
    model.init_weights(0)
    batches, alone = [plan.collate(rows) for rows in plan.epoch()[:2]], Ranks(0, 1, torch.device("cpu"))
    assert max(batch.n_tokens for batch in batches) > 100
    whole = evaluate_loss(model, batches, TrainConfig(), alone)
    with Largest() as largest:
        backward(model, batches, 100, TrainConfig(), alone)
        assert evaluate_loss(model, batches, TrainConfig(), alone) == whole
    assert largest.n <= 16 * 300
