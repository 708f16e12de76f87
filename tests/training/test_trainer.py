"""The loop as a program calls it: opening a run, a step, a log record, a signal, the origin of a checkpoint."""

import json
import math
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch

from tinystory.checkpoint import read_header
from tinystory.errors import TinystoryError, UsageError
from tinystory.safe.name_lock import NameLock
from tinystory.text.tokenizer import Tokenizer
from tinystory.training import loop, trainer
from tinystory.training.config import resolve_changes, resolve_run
from tinystory.training.display import Display, Signals, log_to_tensorboard
from tinystory.training.distributed import Ranks
from tinystory.training.loop import make_trainer, train
from tinystory.training.opening import begin_run, load_teacher, resume_run
from tinystory.training.run import git_commit
from tinystory.training.step import optimizer_step

ALONE = Ranks(0, 1, torch.device("cpu"))
SHAPE = {"n_layer": 1, "n_head": 1, "d_model": 16, "d_ff": 16, "max_seq_len": 32, "valid_stories": 2}


@pytest.fixture
def fields(story_file, tokenizer, tmp_path):
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json())
    return SHAPE | {"data": str(story_file), "tokenizer": str(tmp_path / "tokenizer.json"), "test_split": 0.1}


@pytest.fixture
def opened(fields, tmp_path):
    return begin_run(
        tmp_path / "run", resolve_run(None, None, fields | {"steps": 3, "every": 2, "log_every": 1}), ALONE
    )


@pytest.fixture
def bare(monkeypatch):
    """Without plots and samples, which take long."""
    monkeypatch.setattr(trainer, "has_matplotlib", lambda: False)
    monkeypatch.setattr(trainer, "sample_stories", lambda *_: {})


def records(opened, *keys):
    found = [json.loads(line) for line in (opened.run.folder / "metrics.jsonl").read_text().splitlines()]
    return [record["step"] for record in found if keys[0] in record] if keys else found


def again(opened, **changes):
    """Open a run again, as a new process does."""
    config = opened.run.configuration()[0]
    return resume_run(opened.run.folder, resolve_changes(config, None, None, changes), ALONE)


def at_step(monkeypatch, n, act):
    """Do something when step n begins."""
    original = trainer.Trainer.step

    def step(self, *arguments):
        if self.state.step + 1 == n:
            act()
        return original(self, *arguments)

    monkeypatch.setattr(trainer.Trainer, "step", step)


def send(number):
    return lambda: os.kill(os.getpid(), number)


def test_a_run_ends_with_a_checkpoint_and_goes_on_with_changes(opened, capsys, monkeypatch):
    monkeypatch.setattr(trainer, "has_matplotlib", lambda: False)
    monkeypatch.setattr(trainer, "MAX_TOKENS", 4)
    assert train(opened, ALONE) == 0
    steps = [(record["step"], "valid_loss" in record) for record in records(opened)]
    assert steps == [(1, False), (2, False), (2, True), (3, False), (3, True)]
    origin = read_header(opened.run.folder).provenance
    assert (origin["step"], origin["run"]["data"]["data"]) == (3, ["stories.txt"])
    assert origin["valid_loss"] == records(opened)[-1]["valid_loss"]
    shown = capsys.readouterr().err
    assert "train stories: 5" in shown
    assert "step 0 of 3" in shown
    assert "peak learning rates: AdamW 0.003 (--lr), Muon 0.003 (--muon-lr" in shown
    assert f"talk to it: tinystory chat -m {opened.run.folder}/best" in shown

    assert train(again(opened), ALONE) == 0
    assert "this run is complete; to go on, give more --steps" in capsys.readouterr().err
    assert train(again(opened, steps=4), ALONE) == 0
    assert [record["step"] for record in records(opened)][-2:] == [4, 4]


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_ends_without_a_validation(opened, monkeypatch, number):
    """SIGTERM once validated first, for a minute; what killed the process after ten seconds lost everything."""
    before = signal.getsignal(number)
    at_step(monkeypatch, 1, send(number))
    monkeypatch.setattr(trainer.Trainer, "validate", lambda *_: pytest.fail("validated"))
    assert train(opened, ALONE) == 128 + number
    assert opened.run.latest.resolve().name == "step-000001"
    assert records(opened, "train_loss") == [1]
    assert signal.getsignal(number) == before


@pytest.mark.usefixtures("bare")
def test_a_signal_during_a_validation_ends_it_with_the_checkpoint_saved(opened, monkeypatch):
    original = trainer.evaluate_loss

    def evaluate(model, batches, *arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(model, batches, *arguments)

    monkeypatch.setattr(trainer, "evaluate_loss", evaluate)
    assert train(opened, ALONE) == 128 + signal.SIGTERM
    assert opened.run.latest.resolve().name == "step-000002"
    assert records(opened, "valid_loss") == []
    monkeypatch.setattr(trainer, "evaluate_loss", original)
    assert train(again(opened), ALONE) == 0
    assert records(opened, "train_loss") == [1, 2, 3]


@pytest.mark.usefixtures("bare")
def test_the_last_checkpoint_is_validated_later_if_a_signal_has_prevented_it(opened, monkeypatch):
    at_step(monkeypatch, 3, send(signal.SIGTERM))
    assert train(opened, ALONE) == 128 + signal.SIGTERM
    for _ in range(2):
        assert train(again(opened), ALONE) == 0
        assert records(opened, "valid_loss") == [2, 3]
    assert read_header(opened.run.folder).provenance["valid_loss"] == records(opened)[-1]["valid_loss"]


@pytest.mark.usefixtures("bare")
def test_sigusr1_and_the_clock_save_and_go_on(opened, monkeypatch, capsys):
    saved = []
    original = trainer.Trainer.save
    monkeypatch.setattr(trainer.Trainer, "save", lambda self: saved.append(self.state.step) or original(self))
    at_step(monkeypatch, 1, send(signal.SIGUSR1))
    assert train(opened, ALONE) == 0
    assert saved == [1, 2, 3]
    assert "step 1: saved" in capsys.readouterr().err
    del saved[:]
    assert train(again(opened, steps=5, save_minutes=1e-9, every=0), ALONE) == 0
    assert saved == [4, 5]


def test_an_ignored_hangup_stays_ignored():
    """A run under nohup outlives its terminal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.wish() == 0
            os.kill(os.getpid(), signal.SIGUSR1)
            assert signals.wish() == 1
            os.kill(os.getpid(), signal.SIGINT)
            assert signals.wish() == 130
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("bare")
def test_changed_fields_stay_in_force_and_run_json_has_their_history(opened, capsys):
    """A second --resume once went back to the fields with which the run was begun."""
    train(opened, ALONE)
    train(again(opened, lr=1e-4, steps=5, keep=7), ALONE)
    assert "changed from step 3 on: lr 0.003 -> 0.0001" in capsys.readouterr().err
    third = again(opened)
    assert (third.config.training.lr, third.config.training.steps, third.config.loop.keep) == (1e-4, 5, 7)
    assert train(third, ALONE) == 0
    assert "step 5 of 5" in capsys.readouterr().err
    content = json.loads((opened.run.folder / "run.json").read_text())
    assert content["training"]["lr"] == 1e-4
    assert content["history"] == [
        {"step": 3, "changed": {"steps": [3, 5], "lr": [0.003, 0.0001], "keep": [2, 7]}}
    ]  # fmt: skip
    assert read_header(opened.run.folder).provenance["run"]["training"]["lr"] == 1e-4


@pytest.mark.usefixtures("bare")
def test_a_run_of_an_older_version_goes_on_with_its_split(opened, monkeypatch):
    """Before, `seed` chose the validation stories, run.json had three sections, and there were only links."""
    train(opened, ALONE)
    folder = opened.run.folder
    content = json.loads((folder / "run.json").read_text())
    old = {name: content[name] for name in ("data", "model", "training")}
    for name in ("split_seed", "column", "split", "separator"):
        del old["data"][name]
    old["training"]["seed"] = 4
    (folder / "run.json").write_text(json.dumps(old))
    for name in ("latest", "best"):
        (folder / f"{name}.json").unlink()
    going_on = again(opened, steps=4)
    assert (going_on.config.data.split_seed, going_on.config.loop.every) == (4, 0)
    assert train(going_on, ALONE) == 0
    assert going_on.run.latest.name == "step-000004"
    assert json.loads((folder / "run.json").read_text())["stories"].keys() == {"train", "valid"}


def test_a_command_line_with_a_file_or_a_preset_is_read_when_a_run_goes_on(opened, tmp_path):
    """--config nosuch.toml was once not even opened."""
    with pytest.raises(UsageError, match=r"cannot read .*nosuch\.toml: No such file"):
        resolve_changes(opened.config, None, tmp_path / "nosuch.toml", {})
    file = tmp_path / "run.toml"
    file.write_text("d_model = 16\nlr = 0.5\nsteps = 3\nkeep = 9\n[loop]\ndevice = 'cpu'")
    assert resolve_changes(opened.config, None, file, {"lr": 0.25}) == {"lr": 0.25, "keep": 9, "device": "cpu"}
    file.write_text("d_model = 32")
    with pytest.raises(UsageError, match="d_model cannot change"):
        resolve_changes(opened.config, None, file, {})
    with pytest.raises(UsageError, match="there is no preset 'huge'"):
        resolve_changes(opened.config, "huge", None, {})
    with pytest.raises(UsageError, match="n_layer, n_head, d_model, d_ff cannot change"):
        resolve_changes(opened.config, "tiny", None, {})


@pytest.mark.usefixtures("bare")
def test_epochs_end_where_epochs_end(stories, fields, tmp_path):
    """Packed epochs differ by a batch or two, and the run once ended after five times the first."""
    (tmp_path / "eight.txt").write_text("<|endoftext|>".join(stories[:8]))
    data = {
        "data": str(tmp_path / "eight.txt"),
        "valid": fields["data"],
        "max_seq_len": 160,
        "rows": 1,
        "test_split": 0,
    }
    opened = begin_run(tmp_path / "run", resolve_run(None, None, fields | data | {"epochs": 3, "log_every": 1}), ALONE)
    made = make_trainer(opened, ALONE)
    lengths = [len(made.plan.epoch(number)) for number in range(3)]
    assert lengths == [5, 4, 5]
    assert train(opened, ALONE) == 0
    assert records(opened, "train_loss") == list(range(1, sum(lengths) + 1))
    assert records(opened, "valid_loss") == [5, 9, 14]
    assert records(opened)[-1]["epoch"] == 3


@pytest.mark.slow
@pytest.mark.usefixtures("bare")
def test_a_run_with_a_time_limit_validates_five_times_and_knows_its_end(fields, tmp_path, monkeypatch):
    config = resolve_run(None, None, fields | {"epochs": 1000, "max_minutes": 1.0})
    opened = begin_run(tmp_path / "run", config, ALONE)
    expected = []

    class Clock:
        now = 0.0

        def monotonic(self):
            self.now += 2.5
            return self.now

    original = trainer.Trainer.expected_steps
    monkeypatch.setattr(loop, "time", Clock())
    monkeypatch.setattr(trainer.Trainer, "expected_steps", lambda self: expected.append(original(self)) or expected[-1])
    assert train(opened, ALONE) == 0
    n_steps = records(opened)[-1]["step"]
    assert len(records(opened, "valid_loss")) == 5
    assert 0.8 < expected[5] / n_steps < 1.2
    assert expected[-1] == n_steps


@pytest.mark.usefixtures("bare")
def test_the_speed_is_that_of_steps_alone(opened, monkeypatch):
    """It once counted validation, saving and plotting: 40 tokens/s were logged as 20."""
    original = trainer.Trainer.validate

    def validate(self, signals=None):
        time.sleep(0.1)
        return original(self, signals)

    monkeypatch.setattr(trainer.Trainer, "validate", validate)
    train(opened, ALONE)
    found = records(opened)
    _, second, _, third, _ = found
    seconds, tokens = (third[name] - second[name] for name in ("seconds", "tokens"))
    assert third["tokens_per_second"] == pytest.approx(tokens / seconds, rel=0.2)


@pytest.mark.usefixtures("bare")
def test_steps_that_fill_no_line_are_logged_at_the_end(fields, tmp_path):
    opened = begin_run(tmp_path / "run", resolve_run(None, None, fields | {"steps": 3, "log_every": 2}), ALONE)
    assert train(opened, ALONE) == 0
    assert records(opened, "train_loss") == [2, 3]
    assert records(opened, "train_accuracy") == records(opened, "valid_accuracy") == [3]


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize(("muon_lr", "keys"), [(0.1, {"lr", "muon_lr"}), (0.0, {"lr"})])
def test_each_optimizer_has_its_rate_in_the_log(fields, tmp_path, muon_lr, keys):
    config = resolve_run(None, None, fields | {"steps": 1, "muon_lr": muon_lr, "schedule": "constant", "warmup": 0.0})
    opened = begin_run(tmp_path / "run", config, ALONE)
    assert train(opened, ALONE) == 0
    [record, _] = records(opened)
    assert record.keys() & {"lr", "muon_lr"} == keys
    assert record["lr"] == 0.003
    assert record.get("muon_lr", 0.0) == muon_lr


@pytest.mark.usefixtures("bare")
def test_a_run_without_validation_trains_saves_and_names_no_best(fields, tmp_path, capsys):
    config = resolve_run(None, None, fields | {"steps": 2, "every": 1, "test_split": 0.0})
    opened = begin_run(tmp_path / "run", config, ALONE)
    assert train(opened, ALONE) == 0
    assert opened.run.latest.name == "step-000002"
    assert opened.run.named("best") is None
    shown = capsys.readouterr().err
    assert "60 stories to learn from, 0 to validate with" in shown
    assert f"talk to it: tinystory chat -m {opened.run.folder}\n" in shown


@pytest.mark.usefixtures("bare")
def test_text_that_cannot_be_spelled_has_no_bits_per_byte(opened, monkeypatch, capsys):
    monkeypatch.setattr(Tokenizer, "n_unknown", lambda *_: 5)
    assert train(opened, ALONE) == 0
    assert records(opened, "valid_bits_per_byte") == []
    assert records(opened, "valid_loss") == [2, 3]
    assert "(5 unknown tokens), so their bits per byte are not measured" in capsys.readouterr().err


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_number_that_is_none_names_step_and_batch(opened, monkeypatch, what):
    made = make_trainer(opened, ALONE)
    place = next(made.plan.ahead())
    if what == "loss":
        made.state.model.embed.weight.data[:] = math.nan
    else:
        monkeypatch.setattr(trainer, "optimizer_step", optimizer_step_of_nan)
    with pytest.raises(TinystoryError, match=rf"{what} is nan; try a smaller --lr and --muon-lr\nthis was step 1; its"):
        made.step(*place)


def optimizer_step_of_nan(model, *others):
    next(model.parameters()).grad[:] = math.nan
    return optimizer_step(model, *others)


def test_no_compiler_is_two_lines(opened, monkeypatch):
    made = make_trainer(opened, ALONE)

    class InvalidCxxCompiler(RuntimeError):
        __module__ = "torch._inductor.exc"

    def fail(*_):
        raise InvalidCxxCompiler("No working C++ compiler found\nin torch\nSet TORCHDYNAMO_VERBOSE=1 for more")

    monkeypatch.setattr(trainer, "backward", fail)
    with pytest.raises(
        TinystoryError, match=r"--compile does not work here: No working C\+\+ compiler found in torch\ninstall a C"
    ):
        made.step(*next(made.plan.ahead()))


@pytest.mark.usefixtures("bare")
def test_one_process_trains_a_run_at_a_time(opened):
    make_trainer(opened, ALONE).save()
    opened.run.unlock()
    of_another = NameLock.take(opened.run.folder, "run")
    with pytest.raises(UsageError, match="another process trains"):
        again(opened, steps=6)
    of_another.release()
    assert train(again(opened, steps=1), ALONE) == 0
    assert not list(opened.run.folder.glob(".*lock"))


@pytest.mark.usefixtures("bare")
def test_a_start_that_was_killed_leaves_no_log_lines_for_the_next(opened, fields):
    opened.run.log({"step": 1, "train_loss": 9.0})
    opened.run.keep_samples(1, {"greedy": "An old story."})
    (opened.run.folder / "tensorboard").mkdir()
    opened.run.unlock()  # as the end of a process does
    of_another = NameLock.take(opened.run.folder, "run")
    with pytest.raises(UsageError, match="another process trains"):
        begin_run(opened.run.folder, opened.config, ALONE)
    of_another.release()
    assert train(begin_run(opened.run.folder, opened.config, ALONE), ALONE) == 0
    assert records(opened, "train_loss") == [1, 2, 3]
    assert "old story" not in (opened.run.folder / "samples.txt").read_text()
    assert not (opened.run.folder / "tensorboard").exists()


def test_tensorboard_shows_the_steps_after_a_crash_once(monkeypatch, tmp_path):
    begun = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            begun.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            begun.append((name, value, step))

        def flush(self):
            pass

    fake = types.ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    log_to_tensorboard(tmp_path, 7)({"step": 8, "lr": 0.5})
    assert begun == [(str(tmp_path), 8), ("step", 8, 8), ("lr", 0.5, 8)]


def test_a_terminal_that_was_closed_does_not_end_a_run(monkeypatch):
    display = Display(ALONE)
    monkeypatch.setattr(display.bar.console, "print", lambda *_, **__: (_ for _ in ()).throw(OSError(5, "EIO")))
    with display:
        display.line("nobody reads this")


def test_a_checkpoint_that_perhaps_knows_what_is_held_out_is_told(opened, fields, tmp_path, capsys):
    made = make_trainer(opened, ALONE)
    made.save()
    opened.run.unlock()
    start = {name: value for name, value in fields.items() if name not in SHAPE} | {"init": str(opened.run.folder)}
    for name, others, told in (("same", {"seed": 5}, False), ("other", {"split_seed": 1}, True)):
        capsys.readouterr()
        make_trainer(begin_run(tmp_path / name, resolve_run(None, None, start | others), ALONE), ALONE)
        assert ("may know some of the stories that are held out here" in capsys.readouterr().err) == told


def test_a_step_reports_its_figures_and_changes_the_weights(opened):
    made = make_trainer(opened, ALONE)
    before = made.state.model.embed.weight.detach().clone()
    place = next(made.plan.ahead())
    report = made.step(*place)
    assert report.n_tokens == made.plan.count(place[2]) == made.state.n_tokens
    assert 5 < report.loss < 7  # 300 tokens are about equally likely at first: ln 300 = 5.7
    assert 0 < report.learning_rates["lr"] < opened.config.training.lr  # the warmup
    assert report.gradient_norm > 0
    assert (made.state.step, made.state.epoch, made.state.batch) == (1, *place[:2])
    assert not made.state.model.embed.weight.equal(before)
    assert made.progress() == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"d_model": 32}, "d_model cannot change in a resumed run; start a new run with --out"),
        ({"fraction": 0.5}, r"fraction cannot change.*\nfraction is 1\.0"),
        ({"rows": 8}, "rows and seed cannot change"),
        ({"lr": -1}, "lr is -1"),
        ({"lrr": 1}, "did you mean lr"),
    ],
)
def test_what_cannot_change_in_a_resumed_run_is_refused(opened, changes, words):
    with pytest.raises(UsageError, match=words):
        resolve_changes(opened.config, None, None, changes)


def test_a_run_without_a_checkpoint_cannot_be_resumed(opened):
    with pytest.raises(UsageError, match="no checkpoint yet"):
        resume_run(opened.run.folder, {}, ALONE)


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
