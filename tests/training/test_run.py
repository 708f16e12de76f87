"""Runs on disk: stop, go on, lose nothing."""

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch

from tinystory.checkpoint import load_model, locate, read_header
from tinystory.data.batches import BatchPlan
from tinystory.data.prepare import tokenize
from tinystory.errors import CheckpointError, TinystoryError, UsageError
from tinystory.model.config import ModelConfig
from tinystory.model.transformer import Transformer
from tinystory.safe.writing import replace_link
from tinystory.training.config import RunConfig
from tinystory.training.distributed import Ranks
from tinystory.training.run import Run
from tinystory.training.state import TrainState
from tinystory.training.step import TrainConfig, backward, make_optimizers, optimizer_step, update_average
from tinystory.training.trainer import SPECS, sample_stories

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
    Run(tmp_path).save(first, tokenizer, {}, keep=1)
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
    saved = load_model(read_header(Run(tmp_path).save(state, tokenizer, {"step": 3}, keep=1)))
    assert saved.embed.weight.equal(state.average["embed.weight"])
    assert not saved.embed.weight.equal(state.model.embed.weight)
    assert read_header(tmp_path).provenance == {"step": 3}


def test_the_last_few_and_the_best_checkpoint_stay(plan, tokenizer, tmp_path):
    state, run = fresh(), Run(tmp_path)
    for best in (False, True, False, False, False):
        steps(state, plan, 1)
        directory = run.save(state, tokenizer, {}, keep=2)
        run.add_validation(directory, state, {}, best=best, keep=2)
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-000002", "step-000004", "step-000005"]
    assert (tmp_path / "best").resolve().name == "step-000002"
    assert run.latest.resolve().name == "step-000005"


def test_what_is_no_training_state_of_this_run_is_refused(plan, tokenizer, tmp_path, checkpoint):
    Run(tmp_path).save(fresh(), tokenizer, {}, keep=1)
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
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    run.forget_after(2)  # a line that was cut off is deleted, even if it is the only one
    assert (tmp_path / "metrics.jsonl").read_text().endswith("}\n")
    Run(tmp_path / "nothing").forget_after(2)
    with pytest.raises(TinystoryError, match="cannot write"):
        Run(tmp_path / "nothing").log({})


def test_samples_leave_the_model_and_its_optimizer_alone(plan, tokenizer):
    state = fresh()
    steps(state, plan, 1)
    before = {name: (p, p.detach().clone()) for name, p in state.model.named_parameters()}
    stories = sample_stories(state.model, tokenizer, ["Once upon a time"])
    assert list(stories) == list(SPECS)
    assert all(text.startswith("Once upon a time") for text in stories.values())
    assert stories == sample_stories(state.model, tokenizer, ["Once upon a time"])
    for name, p in state.model.named_parameters():
        assert p is before[name][0]
        assert p.equal(before[name][1])
    assert state.model.training


def test_another_optimizer_takes_over_what_it_can(plan, tokenizer, tmp_path):
    """Moments once went by number: without Muon, AdamW took those of other parameters and the loss became NaN."""
    state = fresh()
    steps(state, plan, 3)
    Run(tmp_path).save(state, tokenizer, {}, keep=1)
    other = fresh()
    other.optimizers = make_optimizers(other.model, TrainConfig(muon_lr=0))
    other.load(tmp_path / "latest", ALONE, 0)
    adamw = other.optimizers["adamw"]
    embed, hidden = other.model.embed.weight, other.model.blocks[0].attn.q.weight
    assert adamw.state[embed]["exp_avg"].equal(state.optimizers["adamw"].state[state.model.embed.weight]["exp_avg"])
    assert hidden not in adamw.state or not adamw.state[hidden]
    losses = steps(other, plan, 4)
    assert losses[-1] < 6


# --- folders that other programs have changed ---


@pytest.fixture
def save(tokenizer):
    """Save a checkpoint of a fresh state at a step, as the best or not; return its folder."""
    state = fresh()

    def save(run, step, *, best=False, keep=9):
        state.step = step
        directory = run.save(state, tokenizer, {"step": step}, keep=keep)
        run.add_validation(directory, state, {"step": step}, best=best, keep=keep)
        return directory

    return save


@pytest.mark.parametrize("name", ["step-000003-good", "step-", "step-3.bak"])
def test_a_folder_beside_the_checkpoints_stays_and_stops_nothing(save, tmp_path, name):
    """`int` of its name once ended the run at its next save."""
    (tmp_path / name).mkdir()
    (tmp_path / "step-000009").write_text("a file")
    for step in (2, 3):
        save(Run(tmp_path), step, keep=1)
    names = {path.name for path in tmp_path.glob("step-*")}
    assert names == {name, "step-000009", "step-000003"}
    assert Run(tmp_path).latest.name == "step-000003"


def no_links(*_, **__):
    raise OSError(errno.EPERM, "Operation not permitted")


def test_a_run_needs_no_links(save, tmp_path, monkeypatch):
    """Google Drive, exFAT and Windows have none; training once ended at its first save."""
    monkeypatch.setattr(Path, "symlink_to", no_links)
    run = Run(tmp_path)
    for step in (1, 2, 3, 4):
        save(run, step, best=step == 2, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["step-000002", "step-000004"]
    assert (run.latest.name, run.named("best").name) == ("step-000004", "step-000002")
    assert read_header(tmp_path).provenance == {"step": 4}
    assert read_header(tmp_path / "latest").provenance == {"step": 4}
    assert read_header(locate(str(tmp_path / "best"))).provenance == {"step": 2}


@pytest.mark.parametrize("old", [True, False], ids=["run of an older version", "run of this version"])
def test_a_copy_that_has_followed_the_links_goes_on(save, tmp_path, old):
    """`cp -rL` makes folders of the links; the next save once could not replace them."""
    for step in (1, 2, 3):
        save(Run(tmp_path / "a"), step, best=step == 2, keep=1)
    copy = shutil.copytree(tmp_path / "a", tmp_path / "b", symlinks=False)
    if old:
        (copy / "latest.json").unlink()
        (copy / "best.json").unlink()
    run = Run(copy)
    assert TrainState.step_of(run.latest) == 3
    assert TrainState.step_of(run.named("best")) == 2
    save(run, 4, keep=1)
    assert (copy / "latest").is_symlink()
    assert read_header(copy).provenance == read_header(copy / "latest").provenance == {"step": 4}
    assert read_header(copy / "best").provenance == {"step": 2}
    save(run, 5, best=True, keep=1)
    assert read_header(copy / "best").provenance == {"step": 5}


def test_without_a_name_the_newest_checkpoint_is_the_latest(save, tmp_path):
    for step in (9, 10):
        save(Run(tmp_path), step)
    for name in ("latest", "latest.json"):
        (tmp_path / name).unlink()
    assert Run(tmp_path).latest.name == "step-000010"
    (tmp_path / "latest.json").write_text('{"checkpoint": "../../step-000009"}')  # from a stranger
    assert Run(tmp_path).latest.name == "step-000010"
    (tmp_path / "latest.json").write_text('{"checkpoint": "step-000777"}')
    assert Run(tmp_path).latest.name == "step-000010"


def test_a_link_that_lags_behind_does_not_count(save, tmp_path):
    """A crash may come between the file and the link."""
    save(Run(tmp_path), 1)
    save(Run(tmp_path), 2)
    replace_link(tmp_path / "latest", "step-000001")
    assert Run(tmp_path).latest.name == "step-000002"
    assert read_header(tmp_path).provenance == {"step": 2}


@pytest.mark.parametrize("content", ["tokenizer.json", "run.json", "notes/a.txt", "config.json", ".git/config"])
def test_a_folder_of_other_things_is_no_place_for_a_run(tokenizer, tmp_path, content):
    """A tokenizer.json of the user was once replaced."""
    path = tmp_path / "mine" / content
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    with pytest.raises(UsageError, match=r"holds .* and no run; give --out a new or an empty folder"):
        Run(tmp_path / "mine").begin(RunConfig(), tokenizer)
    assert path.read_text() == "{}"
    assert [p for p in (tmp_path / "mine").rglob("*") if p.is_file()] == [path]


def test_a_folder_that_a_killed_start_has_left_is_begun_again(tokenizer, tmp_path):
    (tmp_path / ".run.lock").write_text("")
    (tmp_path / ".0123456789abcdef.partial").write_text("{")
    (tmp_path / ".DS_Store").write_text("")
    Run(tmp_path).begin(RunConfig(), tokenizer)
    assert Run(tmp_path).configuration()[0] == RunConfig()


def test_samples_after_a_checkpoint_are_dropped_when_a_run_goes_on(tmp_path):
    run = Run(tmp_path)
    for step in (2, 4, 6):
        run.keep_samples(step, {"greedy": f"Story {step}.\nWith a second line.", "sample": "More."})
    before = (tmp_path / "samples.txt").read_text()
    run.forget_after(4)
    assert (tmp_path / "samples.txt").read_text() == before[: before.index("== step 6")]
    run.forget_after(4)
    assert "Story 4." in (tmp_path / "samples.txt").read_text()


def test_what_changes_is_remembered_with_its_step(tokenizer, tmp_path):
    run = Run(tmp_path)
    run.begin(RunConfig(), tokenizer)
    assert run.remember(RunConfig(), 0, {"train": "ab"}) == {}
    assert run.story_hashes() == {"train": "ab"}
    changed = RunConfig(training=TrainConfig(lr=0.5))
    assert run.remember(changed, 7, {"train": "ab"}) == {"lr": (0.003, 0.5)}
    assert run.configuration()[0] == changed
    run.remember(RunConfig(), 9, {"train": "ab"})
    history = json.loads((tmp_path / "run.json").read_text())["history"]
    assert history == [{"step": 7, "changed": {"lr": [0.003, 0.5]}}, {"step": 9, "changed": {"lr": [0.5, 0.003]}}]
