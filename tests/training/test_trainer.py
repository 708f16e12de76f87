"""The loop as a program calls it: opening a run, a step, a log record, a signal, the origin of a checkpoint."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from tinystory.checkpoint import read_header
from tinystory.errors import UsageError
from tinystory.training import loop
from tinystory.training.config import resolve_run
from tinystory.training.distributed import Ranks
from tinystory.training.loop import LoopOptions, git_commit, make_trainer, train
from tinystory.training.opening import begin_run, load_teacher, resume_run

ALONE = Ranks(0, 1, torch.device("cpu"))
SHAPE = {"n_layer": 1, "n_head": 1, "d_model": 16, "d_ff": 16, "max_seq_len": 32, "valid_stories": 2}


@pytest.fixture
def fields(story_file, tokenizer, tmp_path):
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json())
    return SHAPE | {"data": str(story_file), "tokenizer": str(tmp_path / "tokenizer.json"), "test_split": 0.1}


@pytest.fixture
def opened(fields, tmp_path):
    return begin_run(tmp_path / "run", resolve_run(None, None, fields | {"steps": 3}), ALONE)


@pytest.fixture
def handlers(monkeypatch):
    """Without plots, which take long; the signal handlers of the tests come back at the end."""
    monkeypatch.setattr(loop, "_has_matplotlib", lambda: False)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
        signal.signal(number, handler)


def records(opened):
    return [json.loads(line) for line in (opened.run.folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.usefixtures("handlers")
def test_a_run_ends_with_a_checkpoint_and_goes_on_with_changes(opened, capsys):
    assert train(opened, LoopOptions(every=2, log_every=1), ALONE) == 0
    steps = [(record["step"], "valid_loss" in record) for record in records(opened)]
    assert steps == [(1, False), (2, False), (2, True), (3, False), (3, True)]
    origin = read_header(opened.run.folder).provenance
    assert (origin["step"], origin["run"]["data"]["data"]) == (3, ["stories.txt"])
    shown = capsys.readouterr().err
    assert "train stories: 5" in shown
    assert "step 0 of 3" in shown

    assert train(resume_run(opened.run.folder, {}, ALONE), LoopOptions(), ALONE) == 0
    assert "this run is complete; to go on, give more --steps" in capsys.readouterr().err
    assert train(resume_run(opened.run.folder, {"steps": 4}, ALONE), LoopOptions(log_every=1), ALONE) == 0
    assert [record["step"] for record in records(opened)][-2:] == [4, 4]


@pytest.mark.usefixtures("handlers")
def test_a_signal_ends_the_step_saves_and_is_the_exit_code(opened, monkeypatch):
    original = loop.Trainer.step

    def step(self, *arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *arguments)

    monkeypatch.setattr(loop.Trainer, "step", step)
    assert train(opened, LoopOptions(), ALONE) == 128 + signal.SIGTERM
    assert opened.run.latest.resolve().name == "step-000001"


def test_a_step_reports_its_figures_and_changes_the_weights(opened):
    trainer = make_trainer(opened, ALONE)
    before = trainer.state.model.embed.weight.detach().clone()
    place = next(trainer.plan.ahead())
    report = trainer.step(*place)
    assert report.n_tokens == trainer.plan.count(place[2]) == trainer.state.n_tokens
    assert 5 < report.loss < 7  # 300 tokens are about equally likely at first: ln 300 = 5.7
    assert 0 < report.learning_rate < opened.config.training.lr  # the warmup
    assert report.gradient_norm > 0
    assert (trainer.state.step, trainer.state.epoch, trainer.state.batch) == (1, *place[:2])
    assert not trainer.state.model.embed.weight.equal(before)
    assert trainer.progress() == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"d_model": 32}, "d_model cannot change in a resumed run; start a new run with --out"),
        ({"rows": 8}, "rows and seed cannot change"),
        ({"lr": 0.1}, "no checkpoint yet"),
    ],
)
def test_what_cannot_be_resumed_is_refused(opened, changes, words):
    with pytest.raises(UsageError, match=words):
        resume_run(opened.run.folder, changes, ALONE)


def test_a_run_without_data_and_a_teacher_of_another_vocabulary_are_refused(opened, tmp_path):
    with pytest.raises(UsageError, match="--data is missing: give story files"):
        begin_run(tmp_path / "empty", resolve_run(None, None, SHAPE), ALONE)
    assert not (tmp_path / "empty").exists()
    with pytest.raises(UsageError, match="default has another vocabulary than this run"):
        load_teacher("default", opened, ALONE)


def git(folder, *command):
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *command], cwd=folder, check=True)


def test_the_commit_of_a_checkpoint_is_that_of_our_checkout_and_of_no_other(tmp_path):
    """A package that is installed below another project's repository once would have got that project's commit."""
    package = tmp_path / "checkout" / "tinystory"
    package.mkdir(parents=True)
    git(package.parent, "init", "-q")
    assert git_commit(package) is None  # nothing is committed yet
    git(package.parent, "commit", "-q", "--allow-empty", "-m", "first")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=package, capture_output=True, text=True, check=True)
    assert git_commit(package) == head.stdout.strip()
    installed = package.parent / "venv" / "site-packages" / "tinystory"
    installed.mkdir(parents=True)
    assert git_commit(installed) is None
    assert git_commit(Path("/nowhere/at/all")) is None
