"""Check the door for notebooks, `fit`, and what a run does for its reader: samples, patience, the peak, wandb."""

import json
import math
import os
import signal
import sys
import threading
import time
import types

import pytest
import torch

import tinystory as ts
from tinystory.errors import UsageError
from tinystory.model.config import ModelConfig
from tinystory.training import StepRecord, fit
from tinystory.training import trainer as trainer_module
from tinystory.training.display import Display, Meter, Signals, flops_per_token
from tinystory.training.distributed import Ranks
from tinystory.training.state import TrainState

ALONE = Ranks(0, 1, torch.device("cpu"))
SHAPE = {"n_layer": 1, "n_head": 1, "d_model": 16, "d_ff": 16, "max_seq_len": 32, "valid_stories": 2}


@pytest.fixture
def fields(story_file, tokenizer, tmp_path, monkeypatch):
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json())
    monkeypatch.setattr(trainer_module, "has_matplotlib", lambda: False)
    monkeypatch.setattr(trainer_module, "MAX_TOKENS", 3)
    vocabulary = {"tokenizer": str(tmp_path / "tokenizer.json"), "test_split": 0.2}
    return SHAPE | vocabulary | {"data": str(story_file), "steps": 3, "every": 1, "log_every": 1}


def test_a_run_in_a_notebook(fields, tmp_path, capsys):
    seen = []
    run = fit(fields, tmp_path / "run", on_step=seen.append)
    assert capsys.readouterr() == ("", "")
    assert [type(record) for record in seen] == [StepRecord] * 3
    assert [record.step for record in seen] == [1, 2, 3]
    assert seen[-1].progress == 1
    assert seen[0].learning_rates.keys() == {"lr", "muon_lr"}
    logged = [record for record in run.metrics if "train_loss" in record]
    assert [record["train_loss"] for record in logged] == pytest.approx([record.loss for record in seen])
    assert (run.exit_code, run.latest.name, run.best.parent) == (0, "step-000003", run.folder)
    assert ts.load(run.folder).write("Once", "greedy", max_new_tokens=2).tokens

    again = fit({"steps": 4}, run.folder, resume=True)
    assert again.latest.name == "step-000004"
    with pytest.raises(UsageError, match="d_model cannot change"):
        fit({"d_model": 32}, run.folder, resume=True)


def test_on_step_stops_a_run_that_then_goes_on(fields, tmp_path):
    whole = fit(fields, tmp_path / "whole")
    run = fit(fields, tmp_path / "run", on_step=lambda record: record.step == 2)
    assert (run.exit_code, run.latest.name) == (0, "step-000002")
    run = fit({}, run.folder, resume=True)
    losses = [[record["train_loss"] for record in one.metrics if "train_loss" in record] for one in (whole, run)]
    assert losses[0] == losses[1]


def test_what_on_step_takes_is_no_part_of_the_speed(fields, tmp_path):
    run = fit(fields | {"steps": 4}, tmp_path / "run", on_step=lambda record: time.sleep(0.3))
    [last] = [record for record in run.metrics if record["step"] == 4 and "train_loss" in record]
    assert last["seconds"] < 0.9


def test_the_stop_button_of_a_notebook_saves_the_run(fields, tmp_path):
    run = fit(fields, tmp_path / "run", on_step=lambda record: os.kill(os.getpid(), signal.SIGINT))
    assert (run.exit_code, run.latest.name) == (130, "step-000001")


def test_outside_the_main_thread_no_signal_is_noted():
    noted = []

    def enter():
        with Signals() as signals:
            noted.append(signals._before)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert noted == [{}]
    with Signals() as signals:
        assert signal.SIGQUIT in signals._before


def test_every_prompt_has_its_samples(fields, tmp_path):
    run = fit(fields | {"sample_prompt": ["Tim", "A cat"]}, tmp_path / "run")
    titles = [line for line in (run.folder / "samples.txt").read_text().splitlines() if line.startswith("== step 3")]
    specs = ("greedy", "top-k 40 | sample 0.8")
    assert titles == [f"== step 3, {spec}, '{prompt}'" for prompt in ("Tim", "A cat") for spec in specs]
    assert json.loads((run.folder / "run.json").read_text())["loop"]["sample_prompt"] == ["Tim", "A cat"]
    with pytest.raises(UsageError, match="sample_prompt is empty"):
        fit(fields | {"sample_prompt": []}, tmp_path / "other")


def worse_from(monkeypatch, step):
    """Make every validation after a step a little worse than the one before."""
    validate = trainer_module.Trainer.validate

    def worse(self, signals=None):
        record = validate(self, signals)
        return record | {"valid_loss": 1.0 if self.state.step <= step else 1.0 + self.state.step}

    monkeypatch.setattr(trainer_module.Trainer, "validate", worse)


def test_patience_ends_a_run_without_progress(fields, tmp_path, monkeypatch, capsys):
    worse_from(monkeypatch, 2)
    run = fit(fields | {"steps": 9, "patience": 2}, tmp_path / "run", quiet=False)
    assert (run.latest.name, run.best.name) == ("step-000003", "step-000001")
    assert "2 validations without a better one: the run ends (--patience)" in capsys.readouterr().err
    again = fit({}, run.folder, resume=True, quiet=False)
    assert again.latest.name == "step-000003"
    assert "to go on, give more --patience" in capsys.readouterr().err
    assert fit({"patience": 4}, run.folder, resume=True).latest.name == "step-000005"


def test_a_resumed_run_keeps_its_impatience(fields, tmp_path, monkeypatch):
    worse_from(monkeypatch, 1)
    limits = {"steps": 9, "patience": 3}
    run = fit(fields | limits, tmp_path / "run", on_step=lambda record: record.step == 3)
    assert json.loads((run.latest / "training_state.json").read_text())["stale"] == 1
    assert fit({}, run.folder, resume=True).latest.name == "step-000004"  # as without the stop


def test_a_state_of_an_earlier_version_is_loaded(fields, tmp_path):
    run = fit(fields, tmp_path / "run")
    counters = run.latest / "training_state.json"
    content = json.loads(counters.read_text())
    assert content.pop("stale") in range(3)
    counters.write_text(json.dumps(content))
    assert TrainState.step_of(run.latest) == 3
    assert fit({"steps": 4}, run.folder, resume=True).latest.name == "step-000004"


def test_patience_needs_validation_stories(fields, tmp_path):
    with pytest.raises(UsageError, match="--patience needs validation stories"):
        fit(fields | {"test_split": 0.0, "patience": 1}, tmp_path / "run")


def test_the_share_of_the_peak_follows_from_the_shape():
    llama = ModelConfig.llama(100, 2, 4, 32, 64, 48, tied_head=False)
    gpt2 = ModelConfig.gpt2(100, 2, 4, 32, 64)
    attention = 12 * 2 * 32 * 16
    assert flops_per_token(llama, 16) == 6 * (llama.n_parameters - 100 * 32) + attention
    assert flops_per_token(gpt2, 16) == 6 * (gpt2.n_parameters - 64 * 32) + attention
    meter = Meter(2e6, 1e9)
    meter.add(1.0, 50, 0.5)
    state = types.SimpleNamespace(step=1, epoch=0, n_tokens=50, seconds=0.5)
    assert meter.record(state)["mfu"] == pytest.approx(0.2)


def test_the_log_has_the_share_of_the_peak_where_it_is_given(fields, tmp_path):
    run = fit(fields | {"steps": 1, "peak_flops": 1e9}, tmp_path / "run")
    [record] = [record for record in run.metrics if "train_loss" in record]
    assert 0 < record["mfu"] < math.inf


@pytest.mark.parametrize(("seconds_a_step", "expected"), [(10, " ends about 10:31"), (14_400, " ends about Thu 10:30")])
def test_the_end_of_a_run_is_told_by_the_clock(monkeypatch, seconds_a_step, expected):
    began = 1_700_044_200.0  # a Wednesday, 10:30
    moments = iter([began, began + seconds_a_step])
    monkeypatch.setattr("tinystory.training.display.time.time", lambda: next(moments))
    monkeypatch.setattr("tinystory.training.display.time.localtime", time.gmtime)
    display = Display(ALONE, quiet=True)
    assert display._end(5, 11) == ""
    assert display._end(6, 11) == expected


class FakeClient(types.ModuleType):
    """Stands for the client of Weights & Biases."""

    def __init__(self):
        super().__init__("wandb")
        self.begun, self.logged, self.fails = [], [], False

    def init(self, **options):
        if self.fails:
            raise RuntimeError("no key\nsecond line")
        self.begun.append(options)
        return types.SimpleNamespace(id="abc", log=self.log, finish=self.finish)

    def finish(self):
        if self.fails is None:
            raise RuntimeError("not finished")
        self.logged.append("finished")

    def log(self, record, step):
        if step == 2 and self.fails is None:
            raise ConnectionError("gone")
        self.logged.append((step, sorted(record)))


@pytest.fixture
def client(monkeypatch):
    fake = FakeClient()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_wandb_gets_every_record_and_goes_on_with_its_run(client, fields, tmp_path):
    run = fit(fields | {"logger": "wandb"}, tmp_path / "run")
    assert client.logged.pop() == "finished"
    assert [step for step, _ in client.logged] == [1, 1, 2, 2, 3, 3]
    assert "valid_loss" in client.logged[1][1]
    fit({"steps": 4}, run.folder, resume=True)
    assert [options["id"] for options in client.begun] == [None, "abc"]
    assert client.begun[0]["config"]["d_model"] == 16


def test_a_client_that_fails_does_not_end_the_run(client, fields, tmp_path, capsys):
    client.fails = None
    run = fit(fields | {"logger": "wandb"}, tmp_path / "run", quiet=False)
    assert run.latest.name == "step-000003"
    shown = capsys.readouterr().err
    assert shown.count("wandb has failed and gets nothing more: gone") == 1
    assert "wandb has failed at the end: not finished" in shown


def test_a_client_that_is_missing_or_refuses_is_one_line(client, fields, tmp_path, monkeypatch):
    client.fails = True
    with pytest.raises(UsageError, match="--logger wandb: no key") as caught:
        fit(fields | {"logger": "wandb"}, tmp_path / "run")
    assert str(caught.value).count("\n") == 1
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UsageError, match=r"pip install 'tinystory\[wandb\]'"):
        fit(fields | {"logger": "wandb"}, tmp_path / "other")


@pytest.mark.slow
def test_the_real_client_writes_its_files_offline(fields, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="the client of Weights & Biases is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = fit(fields | {"logger": "wandb"}, tmp_path / "run")
    fit({"steps": 4}, run.folder, resume=True)
    logs = list((run.folder / "wandb").glob("offline-run-*"))
    assert len(logs) == 2
    assert len({log.name.rpartition("-")[2] for log in logs}) == 1
