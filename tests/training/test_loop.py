"""scripts/train.py as users run it: stopped, killed, resumed, on a full disk, on two ranks."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tinystory.checkpoint import load_model, read_header

TESTS = Path(__file__).resolve().parents[1]
SCRIPT = TESTS.parent / "scripts" / "train.py"
SHAPE = ["--n-layer", "1", "--n-head", "1", "--d-model", "32", "--d-ff", "32", "--max-seq-len", "64", "--rows", "4",
         "--micro-rows", "2", "--valid-stories", "3", "--log-every", "1"]  # fmt: skip
ADAMW = ["--muon-lr", "0", "--lr", "1e-3"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trainer():
    """Train with these arguments: exit codes and standard error."""
    command = [sys.executable, str(TESTS / "support" / "forked_trainer.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def train(*argv, **order):
            process.stdin.write(json.dumps({"argv": [*map(str, argv)], **order}) + "\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            return answer["codes"], answer["errors"]

        yield train
        process.stdin.close()


@pytest.fixture(scope="module")
def data(story_file, tokenizer, tmp_path_factory):
    """The arguments that name data and vocabulary."""
    path = tmp_path_factory.mktemp("vocabulary") / "tokenizer.json"
    path.write_text(tokenizer.to_json())
    return ["--data", story_file, "--test-split", "0.2", "--tokenizer", path]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def metrics(run, key="train_loss"):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return {record["step"]: record[key] for record in map(json.loads, lines) if key in record}


def weights(run):
    return dict(load_model(read_header(run)).named_parameters())


def step_of(run):
    return json.loads((run / "latest" / "training_state.json").read_text())["step"]


def assert_same_weights(run, other, tolerance):
    for name, weight in weights(run).items():
        torch.testing.assert_close(weight, weights(other)[name], atol=tolerance, rtol=0, msg=name)


def test_a_run_leaves_everything_that_was_promised(trainer, data, tmp_path):
    run = tmp_path / "run"
    codes, errors = trainer(*data, *SHAPE, "--epochs", 2, "--out", run)
    assert codes == [0], errors
    assert {p.name for p in run.iterdir()} >= {
        "run.json", "tokenizer.json", "metrics.jsonl", "metrics.png", "metrics.svg", "samples.txt", "latest", "best",
    }  # fmt: skip
    validated = metrics(run, "valid_bits_per_byte")
    assert len(validated) == 2  # every epoch
    assert metrics(run)[1] > metrics(run)[max(metrics(run))]
    samples = (run / "samples.txt").read_text()
    assert samples.count("Once upon a time") == 4
    assert "top-k 40 | sample 0.8" in samples
    assert "perplexity" in errors
    found = read_header(run).provenance
    assert found["run"]["data"]["data"] == ["stories.txt"]  # no path of a machine goes into a checkpoint
    spoken = subprocess.run(
        [sys.executable, "-m", "tinystory", "generate", "Tim", "-m", run, "-n", "5", "-q"],
        capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert spoken.stdout.startswith("Tim")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_and_saves(trainer, data, tmp_path, number, code):
    run = tmp_path / "run"
    codes, errors = trainer(*data, *SHAPE, "--epochs", 10000, "--out", run, signal=number, when="epoch 1,")
    assert codes == [code], errors
    stopped_at = step_of(run)
    assert max(metrics(run)) == stopped_at
    codes, errors = trainer("--resume", run, "--steps", stopped_at + 3, "--log-every", 1)
    assert codes == [0], errors
    assert step_of(run) == stopped_at + 3
    assert sorted(metrics(run)) == list(range(1, stopped_at + 4))


def test_ten_steps_are_five_and_five(trainer, data, tmp_path):
    """With Muon, dropout and an average: the losses and weights are the same to the last bit."""
    common = [*data, *SHAPE, "--dropout", 0.1, "--ema", 0.9, "--schedule", "constant"]
    assert trainer(*common, "--steps", 10, "--out", tmp_path / "straight")[0] == [0]
    assert trainer(*common, "--steps", 5, "--out", tmp_path / "halves")[0] == [0]
    assert trainer("--resume", tmp_path / "halves", "--steps", 10, "--log-every", 1)[0] == [0]
    assert metrics(tmp_path / "straight") == metrics(tmp_path / "halves")
    assert_same_weights(tmp_path / "straight", tmp_path / "halves", 0)


def test_sigkill_at_twenty_moments_always_leaves_a_run_that_goes_on(trainer, data, tmp_path):
    run = tmp_path / "run"
    rng = random.Random(5)
    options = [*SHAPE, "--epochs", 10000, "--every", 2]
    codes, errors = trainer(*data, *options, "--out", run, signal=signal.SIGTERM, when="step 2,")
    assert codes == [143], errors
    for _ in range(20):
        before = step_of(run)
        codes, errors = trainer("--resume", run, "--every", 2, kill=rng.uniform(0.05, 1.2))
        assert codes == [-signal.SIGKILL], errors
        load_model(read_header(run))
        assert step_of(run) >= before
    assert step_of(run) > 2


@pytest.mark.parametrize("size", ["700k", "900k", "1000k", "1100k"])
def test_a_full_disk_is_one_line_and_keeps_the_last_checkpoint(trainer, data, tmp_path, size):
    """The disk fills up in a checkpoint, a log, a sample or a plot, as it happens."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        run = disk / "run"
        codes, errors = trainer(*data, *SHAPE, "--steps", 400, "--every", 2, "--keep", 400, "--out", run)
        assert codes == [1], errors
        [line] = [line for line in errors.splitlines() if line.startswith("train: ")] or [errors]
        assert "No space left" in line
        assert "Traceback" not in errors
        load_model(read_header(run))
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--out", "run"], "--data is missing"),
        (["--out", "run", "--data", "nowhere.txt"], "nowhere.txt"),
        (["--out", "run", "--data", "STORIES", "--d-model", "33", "--n-head", "2"], "not divisible"),
        (["--out", "run", "--data", "STORIES", "--tokenizer", "./nowhere.json"], "nowhere.json"),
        (["--resume", "nothing"], "holds no run"),
        (["--out", "run", "--resume", "run"], "either --out"),
    ],
)
def test_a_mistake_is_a_line_or_two_and_leaves_nothing(trainer, story_file, tmp_path, argv, words, monkeypatch):
    places = {"run": tmp_path / "run", "nothing": tmp_path / "nothing", "STORIES": story_file}
    codes, errors = trainer(*(places.get(word, word) for word in argv))
    assert codes in ([2], [3])
    assert words in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "run" / "run.json").exists() or "nowhere.txt" in argv


def test_a_loss_that_is_not_a_number_ends_the_run_and_names_the_batch(trainer, data, tmp_path):
    run = tmp_path / "run"
    codes, errors = trainer(*data, *SHAPE, "--muon-lr", 0, "--lr", 1e30, "--clip", 0, "--every", 1, "--out", run)
    assert codes == [1]
    [line] = [line for line in errors.splitlines() if line.startswith("train: ")]
    assert "nan" in line or "inf" in line or "not finite" in line


def test_prepared_stories_serve_many_runs(trainer, data, story_file, tmp_path):
    vocabulary = data[-1]
    prepared = tmp_path / "prepared"
    command = [
        sys.executable,
        TESTS.parent / "scripts" / "prepare_data.py",
        "--data",
        story_file,
        "--test-split",
        "0.2",
    ]
    subprocess.run([*command, "--tokenizer", vocabulary, "--out", prepared], check=True, capture_output=True)
    for run in ("one", "two"):
        common = ["--data", prepared, "--tokenizer", vocabulary, *SHAPE, "--steps", 2, "--out", tmp_path / run]
        codes, errors = trainer(*common)
        assert codes == [0], errors
        assert not (tmp_path / run / "data").exists()
    codes, errors = trainer("--data", prepared, *SHAPE, "--steps", 2, "--out", tmp_path / "three")
    assert codes == [2]
    assert "another vocabulary" in errors


def test_a_run_starts_from_a_checkpoint_and_goes_on_as_itself(trainer, data, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert trainer(*data, *SHAPE, *ADAMW, "--steps", 10, "--out", first)[0] == [0]
    stay = [
        "--lr",
        "1e-9",
        "--warmup",
        "0",
        "--rows",
        "4",
        "--valid-stories",
        "3",
        "--log-every",
        "1",
        "--muon-lr",
        "0",
    ]
    start = [*data[:4], "--init", first / "latest", *stay]
    assert trainer(*start, "--steps", 1, "--out", second)[0] == [0]
    assert_same_weights(first / "latest", second / "latest", 1e-6)
    codes, errors = trainer("--resume", second, "--steps", 2, "--lr", "1e-2")
    assert codes == [0], errors
    assert step_of(second) == 2
    codes, errors = trainer(*data[:4], "--init", first / "latest", "--tokenizer", "default", "--out", tmp_path / "no")
    assert codes == [2]
    assert "vocabulary of 300 tokens, default one of 2,048" in errors
    assert not (tmp_path / "no").exists()


def test_a_student_learns_from_a_teacher_of_the_same_vocabulary(trainer, data, tmp_path):
    teacher = tmp_path / "teacher"
    assert trainer(*data, *SHAPE, *ADAMW, "--steps", 10, "--out", teacher)[0] == [0]
    student = [*data, *SHAPE, *ADAMW, "--steps", 3, "--distill", "1"]
    codes, errors = trainer(*student, "--teachers", teacher / "latest", teacher / "best", "--out", tmp_path / "student")
    assert codes == [0], errors
    assert trainer(*student, "--out", tmp_path / "alone")[0] == [0]
    taught, alone = (list(metrics(tmp_path / run).values())[1] for run in ("student", "alone"))
    assert taught != alone
    codes, errors = trainer(*student, "--teachers", "default", "--out", tmp_path / "other")
    assert codes == [2]
    assert "another vocabulary" in errors


def test_two_ranks_are_one_process(trainer, data, tmp_path):
    """The same global batch gives the same result; 5 rows on 2 ranks leave an uneven tail."""
    common = [*data, *SHAPE, *ADAMW, "--rows", 5, "--micro-rows", 2]
    one, two = tmp_path / "one", tmp_path / "two"
    assert trainer(*common, "--steps", 10, "--out", one)[0] == [0]
    codes, errors = trainer(*common, "--steps", 10, "--out", two, ranks=2)
    assert codes == [0, 0], errors
    assert metrics(two) == pytest.approx(metrics(one), abs=1e-5)
    assert metrics(two, "valid_loss") == pytest.approx(metrics(one, "valid_loss"), abs=1e-5)
    assert_same_weights(one, two, 1e-5)
    for ranks, next_ranks in ((2, 2), (2, 1), (1, 2)):
        run = tmp_path / f"{ranks}-{next_ranks}"
        assert trainer(*common, "--schedule", "constant", "--steps", 5, "--out", run, ranks=ranks)[0] == [0] * ranks
        codes, errors = trainer("--resume", run, "--steps", 10, "--log-every", 1, ranks=next_ranks)
        assert codes == [0] * next_ranks, errors
    straight = tmp_path / "straight"
    assert trainer(*common, "--schedule", "constant", "--steps", 10, "--out", straight)[0] == [0]
    for run in ("2-2", "2-1", "1-2"):
        assert metrics(tmp_path / run) == pytest.approx(metrics(straight), abs=1e-5)
        assert_same_weights(tmp_path / run, straight, 1e-5)


def test_two_ranks_with_muon_stay_close(trainer, data, tmp_path):
    """Muon orthogonalises in bfloat16: the losses agree within 1e-3."""
    for ranks in (1, 2):
        codes, errors = trainer(*data, *SHAPE, "--steps", 10, "--out", tmp_path / str(ranks), ranks=ranks)
        assert codes == [0] * ranks, errors
    assert metrics(tmp_path / "1") == pytest.approx(metrics(tmp_path / "2"), abs=1e-3)


def test_a_rank_that_fails_ends_the_run(data, tmp_path):
    """Under the real torchrun: one of two ranks is killed, and the whole ends with an error within a minute."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1",
        f"--master-port={free_port()}",
        str(SCRIPT), *map(str, data), *SHAPE, "--epochs", "100000", "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment) as process:
        while not (tmp_path / "run" / "latest").exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.2)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        killed = time.monotonic()
        process.communicate(timeout=90)
        assert process.returncode != 0
        assert time.monotonic() - killed < 60
    load_model(read_header(tmp_path / "run"))
