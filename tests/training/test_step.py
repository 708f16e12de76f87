"""The schedule, the optimizers, the loss and the step."""

import math

import pytest
import torch
import torch.nn.functional as F

from tinystory.checkpoint import load_model, read_header
from tinystory.data.batches import BatchPlan, collate
from tinystory.data.prepare import tokenize
from tinystory.errors import TinystoryError, UsageError
from tinystory.model.config import ModelConfig
from tinystory.model.transformer import Transformer
from tinystory.training.distributed import Ranks
from tinystory.training.step import (
    TrainConfig,
    averaged,
    backward,
    evaluate_loss,
    learning_rate_scale,
    loss_sum,
    make_optimizers,
    optimizer_step,
    update_average,
)

ALONE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def ids(stories, tokenizer):
    return tokenize(stories, tokenizer)


def fresh(config=None, seed=0):
    config = config or TrainConfig()
    model = Transformer(ModelConfig.llama(300, 2, 2, 32, 64, 48), dropout=config.dropout)
    model.init_weights(seed)
    return model, make_optimizers(model, config)


def steps(model, optimizers, plan, n, config):
    losses = []
    for _, _, rows in plan.ahead():
        micro = [plan.collate(rows[i : i + config.micro_rows]) for i in range(0, len(rows), config.micro_rows)]
        losses.append(float(backward(model, micro, plan.count(rows), config, ALONE)))
        optimizer_step(model, optimizers, 1.0, config)
        if len(losses) == n:
            return losses
    raise AssertionError


def test_muon_gets_the_hidden_matrices_and_nothing_else():
    model, optimizers = fresh()
    names = {id(p): name for name, p in model.named_parameters()}
    muon = {names[id(p)] for group in optimizers["muon"].param_groups for p in group["params"]}
    adamw = {names[id(p)] for group in optimizers["adamw"].param_groups for p in group["params"]}
    assert muon == {n for n in names.values() if n.startswith("blocks.") and "norm" not in n}
    assert muon | adamw == set(names.values())
    assert not muon & adamw
    decays = {
        names[id(p)]: group["weight_decay"] for group in optimizers["adamw"].param_groups for p in group["params"]
    }
    assert decays["embed.weight"] > 0 == decays["norm.weight"]
    assert "muon" not in make_optimizers(model, TrainConfig(muon_lr=0))


def test_micro_batches_add_up_to_the_whole_batch(ids):
    plan = BatchPlan(ids, 64, 4, seed=0)
    whole, parts = TrainConfig(micro_rows=4), TrainConfig(micro_rows=1)
    assert steps(*fresh(), plan, 3, whole) == pytest.approx(steps(*fresh(), plan, 3, parts), rel=1e-4)


def test_the_loss_falls_from_that_of_guessing(ids):
    losses = steps(*fresh(), BatchPlan(ids, 64, 4, seed=0), 20, TrainConfig())
    assert losses[0] == pytest.approx(math.log(300), abs=0.2)
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize("batching", ["packed", "padded"])
def test_validation_is_a_mean_over_tokens_in_both_modes(ids, batching):
    model, optimizers = fresh()
    steps(model, optimizers, BatchPlan(ids, 64, 4, seed=0), 3, TrainConfig())
    model.eval()
    plan = BatchPlan(ids, 32, 3, batching=batching)
    expected, right, n = 0.0, 0, 0
    for piece in plan.pieces:
        row = torch.from_numpy(piece.astype("int64"))
        with torch.no_grad():
            logits = model(row[None, :-1])[0]
        expected += F.cross_entropy(logits, row[1:], reduction="sum").item()
        right += int((logits.argmax(-1) == row[1:]).sum())
        n += len(row) - 1
    model.train()
    found = evaluate_loss(model, map(plan.collate, plan.epoch()), TrainConfig(), ALONE)
    assert model.training
    assert found.n_tokens == n == plan.n_tokens
    assert found.loss == pytest.approx(expected / n, abs=1e-4)
    assert found.accuracy == pytest.approx(right / n)
    assert found.perplexity == pytest.approx(math.exp(expected / n), rel=1e-3)


def test_a_padding_only_batch_gives_zero_loss_and_finite_gradients(ids):
    """A rank without rows takes part with padding."""
    plan = BatchPlan(ids, 64, 4)
    model, optimizers = fresh()
    loss = backward(model, [collate(plan.pieces, [[]], 1)], 100, TrainConfig(), ALONE)
    assert float(loss) == 0
    assert optimizer_step(model, optimizers, 1.0, TrainConfig()) == 0


def test_clipping_bounds_the_step_and_a_gradient_that_is_not_finite_changes_nothing(ids):
    plan = BatchPlan(ids, 64, 4)
    model, optimizers = fresh()
    backward(model, [plan.collate(plan.epoch()[0])], 1, TrainConfig(), ALONE)
    norm = optimizer_step(model, optimizers, 0.0, TrainConfig(clip=0.5))
    assert norm > 0.5
    before = model.embed.weight.detach().clone()
    model.embed.weight.grad = torch.full_like(before, math.nan)
    with pytest.raises(TinystoryError, match="gradient is nan"):
        optimizer_step(model, optimizers, 1.0, TrainConfig())
    assert model.embed.weight.equal(before)


def test_the_average_moves_towards_the_weights_and_stands_in_for_them():
    model, _ = fresh()
    average = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    update_average(average, model, 0.9, step=1000)
    weight = model.embed.weight.detach().clone()
    torch.testing.assert_close(average["embed.weight"], weight * 0.1)
    with averaged(model, average):
        torch.testing.assert_close(model.embed.weight, weight * 0.1)
    assert model.embed.weight.equal(weight)
    with averaged(model, {}):
        assert model.embed.weight.equal(weight)


@pytest.mark.parametrize(
    ("field", "value"),
    [("rows", 0), ("epochs", 0), ("dropout", 1.0), ("lr", -1.0), ("lr", math.nan), ("ema", 1.0), ("warmup", 2.0),
     ("schedule", "square"), ("steps", -1), ("seed", -1), ("seed", 2**64)],
)  # fmt: skip
def test_a_config_out_of_range_names_the_field(field, value):
    with pytest.raises(UsageError, match=field):
        TrainConfig(**{field: value})


@pytest.mark.parity
def test_the_loss_equals_transformers_on_the_same_stories(ids, checkpoint):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    ours = load_model(read_header(checkpoint))
    plan = BatchPlan(ids, 64, 4, batching="padded")
    batch = plan.collate(plan.epoch()[0])
    # transformers shifts the labels itself: they stand under the tokens they belong to.
    rows = torch.cat((batch.token_ids, torch.zeros(4, 1, dtype=torch.long)), dim=1)
    labels = torch.cat((torch.full((4, 1), -100), batch.labels), dim=1)
    with torch.no_grad():
        mine = loss_sum(ours, batch).item() / batch.n_tokens
        reference = theirs(rows, labels=labels).loss.item()
    assert mine == pytest.approx(reference, abs=1e-4)


@pytest.mark.parity
def test_the_padded_loss_of_the_student_projects_family_equals_gpt2s(ids):
    """GPT2LMHeadModel with labels −100 on padding, at a small width; the preset differs from it in size alone."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=300, n_positions=64, n_embd=48, n_layer=2, n_head=12, n_inner=64)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    from tinystory.checkpoint.hf_layout import from_hf_config, name_prefix, tensor_layout, unpack

    ours = Transformer(from_hf_config(config.to_dict()))
    state = theirs.state_dict()
    prefix = name_prefix(ours.config, state)
    weights = {}
    for layout in tensor_layout(ours.config):
        name = layout.name if layout.name in state else prefix + layout.name
        weights |= unpack(layout, state[name])
    ours.load_state_dict(weights, strict=False)
    plan = BatchPlan(ids, 64, 3, batching="padded")
    batch = plan.collate(plan.epoch()[0])
    labels = torch.cat((torch.full((3, 1), -100), batch.labels), dim=1)
    rows = torch.cat((batch.token_ids, torch.zeros(3, 1, dtype=torch.long)), dim=1)
    attention = torch.cat((torch.ones(3, 1, dtype=torch.long), (batch.labels != -100).long()), dim=1)
    with torch.no_grad():
        reference = theirs(rows[:, :64], attention_mask=attention[:, :64], labels=labels[:, :64]).loss.item()
        logits = ours.eval()(batch.token_ids, batch.positions, batch.mask())
    shifted = labels[:, 1:64]
    mine = F.cross_entropy(logits[:, :63].flatten(0, 1), shifted.flatten(), ignore_index=-100).item()
    assert mine == pytest.approx(reference, abs=1e-4)


def test_teachers_pull_the_model_towards_the_mean_of_their_probabilities(ids):
    plan = BatchPlan(ids, 64, 4)
    batch = plan.collate(next(plan.ahead())[2])
    (student, _), *others = [fresh(seed=seed) for seed in (0, 1, 2)]
    teachers = [teacher for teacher, _ in others]
    scored = batch.labels != -100
    inputs = batch.token_ids, batch.positions, batch.mask()
    log_p = student(*inputs)[scored].log_softmax(-1)
    mean = sum(teacher(*inputs)[scored].softmax(-1) for teacher in teachers) / 2
    hard = -log_p.gather(1, batch.labels[scored][:, None]).sum()
    soft = -(mean * log_p).sum()
    for share in (0.0, 0.3, 1.0):
        found = loss_sum(student, batch, teachers, share)
        torch.testing.assert_close(found, share * soft + (1 - share) * hard)
    found.backward()
    assert all(p.grad is None for teacher in teachers for p in teacher.parameters())
    assert all(p.grad is not None for p in student.parameters())


def test_the_rate_rises_holds_and_falls_to_zero():
    def scale(progress):
        return learning_rate_scale(progress, "wsd", warmup=0.1, decay=0.5)

    assert 0 < scale(0) < 0.02
    assert scale(0.05) == pytest.approx(0.5, abs=0.02)
    assert scale(0.1) == scale(0.5) == 1.0
    assert scale(0.75) == pytest.approx(0.5)
    assert scale(1) == 0


def test_cosine_falls_to_a_tenth_and_constant_stays():
    cosine = [round(learning_rate_scale(p, "cosine", warmup=0.0, decay=0.7), 3) for p in (0, 0.5, 1)]
    assert cosine == [1.0, 0.55, 0.1]
    assert {learning_rate_scale(p, "constant", warmup=0.0, decay=0.7) for p in (0, 0.3, 1)} == {1.0}


def test_without_warmup_and_decay_the_rate_is_the_peak():
    assert learning_rate_scale(0.4, "wsd", warmup=0, decay=0) == 1.0
