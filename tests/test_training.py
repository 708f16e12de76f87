"""The schedule, the optimizers, and runs that stop and go on."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tinystory.checkpoint import load_model, read_header
from tinystory.config import ModelConfig
from tinystory.data import collate, cut, tokenize
from tinystory.errors import CheckpointError, UsageError
from tinystory.model import Transformer
from tinystory.training import (
    TrainConfig,
    TrainState,
    evaluate_loss,
    learning_rate_scale,
    loss_sum,
    make_optimizers,
    save_run,
    train_step,
)

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "train.py"
CONFIG = TrainConfig(steps=10, row_len=64, rows=4, micro_rows=2, dropout=0.1)


@pytest.fixture(scope="module")
def pieces(stories, tokenizer):
    return cut(tokenize(stories, tokenizer), 64)


def fresh(config=CONFIG):
    torch.manual_seed(config.seed)
    model = Transformer(ModelConfig.llama(300, 2, 2, 32, 64, 48), dropout=config.dropout)
    model.init_weights(config.seed)
    return TrainState(model, make_optimizers(model, config))


def steps(state, pieces, n, config=CONFIG):
    ahead = state.batches_ahead(pieces, config)
    return [train_step(state, state.model, pieces, next(ahead), config)[0] for _ in range(n)]


def test_the_rate_rises_holds_and_falls_to_nearly_nothing():
    config = TrainConfig(steps=100, warmup=0.1, decay=0.5)
    scales = [learning_rate_scale(step, config) for step in range(100)]
    assert scales[0] == pytest.approx(0.1)
    assert scales[9:50] == [1.0] * 41
    assert scales[75] == pytest.approx(0.5)
    assert scales[99] == pytest.approx(0.02)
    assert learning_rate_scale(3, TrainConfig(steps=10, warmup=0, decay=0)) == 1.0


def test_muon_gets_the_hidden_matrices_and_nothing_else():
    state = fresh()
    names = {id(p): name for name, p in state.model.named_parameters()}
    muon = {names[id(p)] for group in state.optimizers["muon"].param_groups for p in group["params"]}
    adamw = {names[id(p)] for group in state.optimizers["adamw"].param_groups for p in group["params"]}
    assert muon == {n for n in names.values() if n.startswith("blocks.") and "norm" not in n}
    assert muon | adamw == set(names.values())
    assert not muon & adamw
    assert "muon" not in make_optimizers(state.model, TrainConfig(muon_lr=0))


def test_micro_batches_add_up_to_the_whole_batch(pieces):
    whole = TrainConfig(steps=10, row_len=64, rows=4, micro_rows=4)
    parts = TrainConfig(steps=10, row_len=64, rows=4, micro_rows=1)
    one, other = fresh(whole), fresh(parts)
    assert steps(one, pieces, 2, whole) == pytest.approx(steps(other, pieces, 2, parts), rel=1e-5)


def test_the_loss_falls_and_is_a_mean_over_tokens(pieces):
    state = fresh()
    losses = steps(state, pieces, 10)
    assert losses[0] == pytest.approx(math.log(300), abs=0.2)
    assert losses[-1] < losses[0] - 0.3
    expected, n = 0.0, 0
    state.model.eval()
    for piece in pieces:
        with torch.no_grad():
            logits = state.model(torch.from_numpy(piece[None, :-1]).long())[0]
        expected += F.cross_entropy(logits, torch.from_numpy(piece[1:]).long(), reduction="sum").item()
        n += len(piece) - 1
    assert evaluate_loss(state.model, pieces, CONFIG, torch.device("cpu")) == pytest.approx(expected / n, rel=1e-4)


def test_resuming_is_bit_exact(pieces, tokenizer, tmp_path):
    """Ten steps equal five, a save, a load and five more: weights, moments, dropout's random state, data position."""
    straight = fresh()
    losses = steps(straight, pieces, 10)
    first = fresh()
    assert steps(first, pieces, 5) == losses[:5]
    save_run(tmp_path, first, tokenizer, {})
    torch.manual_seed(99)
    second = fresh()
    second.load(tmp_path / "latest")
    assert steps(second, pieces, 5) == losses[5:]
    for (name, a), (_, b) in zip(straight.model.named_parameters(), second.model.named_parameters(), strict=True):
        assert a.equal(b), name
    assert second.n_tokens == straight.n_tokens


def test_the_last_few_checkpoints_stay_and_latest_points_at_the_newest(pieces, tokenizer, tmp_path):
    state = fresh()
    for _ in range(3):
        steps(state, pieces, 1)
        save_run(tmp_path, state, tokenizer, {"step": state.step})
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-000002", "step-000003"]
    header = read_header(tmp_path)
    assert header.provenance == {"step": 3}
    loaded = load_model(header)
    assert loaded.embed.weight.equal(state.model.embed.weight)


def test_a_run_of_another_model_is_refused(pieces, tokenizer, tmp_path, checkpoint):
    state = fresh()
    save_run(tmp_path, state, tokenizer, {})
    model = Transformer(ModelConfig.llama(300, 1, 2, 32, 64, 48))
    other = TrainState(model, make_optimizers(model, CONFIG))
    with pytest.raises(CheckpointError, match="another model"):
        other.load(tmp_path / "latest")
    with pytest.raises(CheckpointError, match="no training state"):
        fresh().load(checkpoint)


def test_a_loss_that_is_not_finite_stops_with_the_batch_named(pieces):
    state = fresh()
    with torch.no_grad():
        state.model.norm.weight.fill_(math.inf)
    with pytest.raises(CheckpointError, match=r"step 0 \(epoch 0, batch 1\)"):
        steps(state, pieces, 1)


@pytest.mark.parametrize(("field", "value"), [("steps", 0), ("dropout", 1.5), ("lr", -1.0), ("lr", math.nan)])
def test_a_config_out_of_range_names_the_range(field, value):
    with pytest.raises(UsageError, match=field):
        TrainConfig(**{field: value})


@pytest.mark.parity
def test_the_packed_loss_equals_transformers_on_the_same_stories(pieces, checkpoint):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    ours = load_model(read_header(checkpoint))
    batch = collate(pieces, [[0], [1]], row_len=64)
    with torch.no_grad():
        mine = loss_sum(ours, batch).item() / batch.n_tokens
        total = 0.0
        for piece in pieces[:2]:
            row = torch.from_numpy(piece[None]).long()
            total += theirs(row[:, :-1], labels=None).logits[0].log_softmax(-1).gather(1, row[0, 1:, None]).sum().item()
    assert mine == pytest.approx(-total / batch.n_tokens, abs=1e-4)


def run_train(*arguments, **options):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.mark.slow
def test_the_script_trains_stops_on_a_signal_and_goes_on(story_file, tokenizer, tmp_path):
    tokens = tmp_path / "tokenizer.json"
    tokens.write_text(tokenizer.to_json())
    run = tmp_path / "run"
    shape = ["--n-layer=1", "--n-head=1", "--d-model=32", "--d-ff=32", "--row-len=64", "--rows=2", "--every=4"]
    common = ["--data", story_file, "--out", run]
    missing = run_train("--out", run)
    assert missing.returncode == 2
    assert "roneneldan/TinyStories" in missing.stderr
    command = [
        sys.executable,
        str(SCRIPT),
        *map(str, common),
        "--tokenizer",
        str(tokens),
        *shape,
    ]
    with subprocess.Popen([*command, "--steps", "100000"], stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith("step 8:"):
                os.kill(process.pid, signal.SIGTERM)
    assert process.returncode == 143
    saved = json.loads((run / "latest" / "training_state.json").read_text())
    assert saved["step"] >= 8
    assert read_header(run).provenance["step"] == saved["step"]
    # A run is not overwritten by accident.
    again = run_train(*common, "--tokenizer", tokens, *shape)
    assert again.returncode == 2
    assert "--resume" in again.stderr
    config = json.loads((run / "run.json").read_text())
    config["training"]["steps"] = saved["step"] + 4
    (run / "run.json").write_text(json.dumps(config))
    resumed = run_train(*common, "--resume", "--every", "4", "--valid-stories", "3")
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads((run / "latest" / "training_state.json").read_text())["step"] == saved["step"] + 4
