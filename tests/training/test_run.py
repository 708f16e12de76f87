"""Runs on disk: stop, go on, lose nothing."""

import json

import pytest
import torch

from tinystory.checkpoint import load_model, read_header
from tinystory.data.batches import BatchPlan
from tinystory.data.prepare import tokenize
from tinystory.errors import CheckpointError, TinystoryError, UsageError
from tinystory.model.config import ModelConfig
from tinystory.model.transformer import Transformer
from tinystory.training.config import RunConfig
from tinystory.training.distributed import Ranks
from tinystory.training.run import Run, TrainState
from tinystory.training.sampling import SPECS, sample_stories
from tinystory.training.step import TrainConfig, backward, make_optimizers, optimizer_step, update_average

ALONE = Ranks(0, 1, torch.device("cpu"))
CONFIG = TrainConfig(dropout=0.1, ema=0.9)


@pytest.fixture(scope="module")
def plan(stories, tokenizer):
    return BatchPlan(tokenize(stories, tokenizer), 64, 4, seed=1)


def fresh(n_layer=2):
    torch.manual_seed(CONFIG.seed)
    model = Transformer(ModelConfig.llama(300, n_layer, 2, 32, 64, 48), dropout=CONFIG.dropout)
    model.init_weights(0)
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    return TrainState(model, make_optimizers(model, CONFIG), average)


def steps(state, plan, n):
    losses = []
    for epoch, batch, rows in plan.ahead(state.epoch, state.batch):
        state.epoch, state.batch = epoch, batch
        losses.append(float(backward(state.model, [plan.collate(rows)], plan.count(rows), CONFIG, ALONE)))
        optimizer_step(state.model, state.optimizers, 0.5, CONFIG)
        state.step += 1
        state.n_tokens += plan.count(rows)
        update_average(state.average, state.model, CONFIG.ema, state.step)
        if len(losses) == n:
            return losses
    raise AssertionError


@pytest.mark.parametrize("n_before", [2, 5, 21])
def test_resuming_is_bit_exact(plan, tokenizer, tmp_path, n_before):
    """Straight through equals stop, save, load and go on: weights, average, moments, dropout, place in the data."""
    straight = fresh()
    losses = steps(straight, plan, 24)
    assert len(plan.epoch()) < 24  # the place in the data crosses an epoch
    first = fresh()
    assert steps(first, plan, n_before) == losses[:n_before]
    Run(tmp_path).save(first, tokenizer, {}, best=True, keep=1)
    torch.manual_seed(99)
    second = fresh()
    second.load(Run(tmp_path).latest, ALONE, CONFIG.seed)
    assert steps(second, plan, 24 - n_before) == losses[n_before:]
    for (name, a), (_, b) in zip(straight.model.named_parameters(), second.model.named_parameters(), strict=True):
        assert a.equal(b), name
        assert straight.average[name].equal(second.average[name]), name
    assert (second.n_tokens, second.epoch, second.batch) == (straight.n_tokens, straight.epoch, straight.batch)


def test_the_checkpoint_has_the_averaged_weights(plan, tokenizer, tmp_path):
    state = fresh()
    steps(state, plan, 3)
    saved = load_model(read_header(Run(tmp_path).save(state, tokenizer, {"step": 3}, best=True, keep=1)))
    assert saved.embed.weight.equal(state.average["embed.weight"])
    assert not saved.embed.weight.equal(state.model.embed.weight)
    assert read_header(tmp_path).provenance == {"step": 3}


def test_the_last_few_and_the_best_checkpoint_stay(plan, tokenizer, tmp_path):
    state, run = fresh(), Run(tmp_path)
    for best in (False, True, False, False, False):
        steps(state, plan, 1)
        run.save(state, tokenizer, {}, best=best, keep=2)
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-000002", "step-000004", "step-000005"]
    assert (tmp_path / "best").resolve().name == "step-000002"
    assert run.latest.resolve().name == "step-000005"


def test_what_is_no_training_state_of_this_run_is_refused(plan, tokenizer, tmp_path, checkpoint):
    Run(tmp_path).save(fresh(), tokenizer, {}, best=False, keep=1)
    with pytest.raises(CheckpointError, match="another model"):
        fresh(n_layer=1).load(tmp_path / "latest", ALONE, 0)
    with pytest.raises(CheckpointError, match="no training state"):
        fresh().load(checkpoint, ALONE, 0)
    with pytest.raises(CheckpointError, match="no training state"):
        TrainState.step_of(checkpoint)
    with pytest.raises(UsageError, match="no checkpoint yet"):
        _ = Run(tmp_path / "empty").latest


def test_a_run_is_begun_once_and_remembers_its_configuration(tokenizer, tmp_path):
    config = RunConfig(training=TrainConfig(rows=7, lr=0.25))
    run = Run(tmp_path / "a" / "b")
    run.begin(config, tokenizer)
    again, vocabulary = run.configuration()
    assert again == config
    assert vocabulary.vocab_size == 300
    run.begin(config, tokenizer)  # nothing was learned yet: a start that failed may be made again
    (run.folder / "latest").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="--resume"):
        run.begin(config, tokenizer)
    (run.folder / "run.json").write_text("[]")
    with pytest.raises(UsageError, match="holds no run"):
        run.configuration()
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        Run(tmp_path / "file" / "run").begin(config, tokenizer)


def test_log_lines_beyond_a_checkpoint_and_cut_off_ones_are_dropped_when_a_run_goes_on(tmp_path):
    run = Run(tmp_path)
    for step in (1, 2, 3):
        run.log({"step": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    run.forget_after(2)
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2]
    Run(tmp_path / "nothing").forget_after(2)
    with pytest.raises(TinystoryError, match="cannot write"):
        Run(tmp_path / "nothing").log({})


def test_samples_leave_the_model_and_its_optimizer_alone(plan, tokenizer):
    state = fresh()
    steps(state, plan, 1)
    before = {name: (p, p.detach().clone()) for name, p in state.model.named_parameters()}
    stories = sample_stories(state.model, tokenizer)
    assert list(stories) == list(SPECS)
    assert all(text.startswith("Once upon a time") for text in stories.values())
    assert stories == sample_stories(state.model, tokenizer)
    for name, p in state.model.named_parameters():
        assert p is before[name][0]
        assert p.equal(before[name][1])
    assert state.model.training


def test_another_optimizer_takes_over_what_it_can(plan, tokenizer, tmp_path):
    """Moments once went by number: without Muon, AdamW took those of other parameters and the loss became NaN."""
    state = fresh()
    steps(state, plan, 3)
    Run(tmp_path).save(state, tokenizer, {}, best=False, keep=1)
    other = fresh()
    other.optimizers = make_optimizers(other.model, TrainConfig(muon_lr=0))
    other.load(tmp_path / "latest", ALONE, 0)
    adamw = other.optimizers["adamw"]
    embed, hidden = other.model.embed.weight, other.model.blocks[0].attn.q.weight
    assert adamw.state[embed]["exp_avg"].equal(state.optimizers["adamw"].state[state.model.embed.weight]["exp_avg"])
    assert hidden not in adamw.state or not adamw.state[hidden]
    losses = steps(other, plan, 4)
    assert losses[-1] < 6
