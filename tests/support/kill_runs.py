"""Send small training runs a signal at random moments, and check that the resumed run is the one that was not killed.

  python tests/support/kill_runs.py            # 100 runs
  python tests/support/kill_runs.py -n 40 --seed 7

The signals take turns: SIGTERM, SIGHUP, SIGUSR1, SIGKILL, each with symbolic links and without. A run that was stopped
goes on with `--resume`; one that has no checkpoint yet begins again, as its message says. At the end weights, optimizer
state, counters and the losses of all steps are the same to the last bit. Needs a POSIX system.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGKILL)
STEPS = 12
OPTIONS = (
    "--n-layer 1 --n-head 1 --d-model 32 --d-ff 32 --max-seq-len 64 --rows 4 --micro-rows 2 --dropout 0.1 --ema 0.9 "
    f"--steps {STEPS} --every 3 --log-every 1 --keep 9 --test-split 0.1 --valid-stories 3"
).split(" ")
WORDS = "the a big red little dog cat ball park ran saw had was and happy Tim Mia in to with"


def main() -> int:
    """Kill the runs, print what went wrong, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=100, metavar="N", help="number of runs (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (default %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, opened_trainer() as train:
        problems = kill_runs(train, Path(folder), args.n, args.seed)
        failed = 0
        done = Counter[str]()
        for name, found in problems:
            done[name] += 1
            failed += bool(found)
            sys.stdout.writelines(f"{name}: {problem}\n" for problem in found)
    counts = ", ".join(f"{n} {name}" for name, n in done.items())
    sys.stdout.write(f"{failed} of {args.n} runs differ ({counts})\n")
    return int(failed > 0)


def kill_runs(train: Any, folder: Path, n_runs: int, seed: int) -> Iterator[tuple[str, list[str]]]:
    """Yield the name of each kill, and what was wrong after it, in words.

    Args:
        train: trains with these arguments, as from `opened_trainer`.
        folder: an empty folder.
        n_runs: how many runs are killed.
        seed: the seed of the moments.
    """
    moments = random.Random(seed)
    stories = folder / "stories.txt"
    stories.write_text("<|endoftext|>".join(_story(moments) for _ in range(60)))
    begin = ["--data", str(stories), *OPTIONS]
    whole = folder / "whole"
    seconds = train([*begin, "--out", str(whole)])["seconds"]
    expected = contents(whole)
    for number in range(n_runs):
        kind, links = SIGNALS[number % len(SIGNALS)], bool(number // len(SIGNALS) % 2)
        run = folder / "run"
        answer = train([*begin, "--out", str(run)], kill=moments.uniform(0, seconds), signal=int(kind), links=links)
        problems, attempts = [], 0
        # A signal may also come in the last validation; the next start then makes it.
        while (answer["codes"] != [0] or not _is_complete(run)) and attempts < 3:
            attempts += 1
            has_checkpoint = any(run.glob("step-*/training_state.json"))
            answer = train(["--resume", str(run)] if has_checkpoint else [*begin, "--out", str(run)], links=links)
        if answer["codes"] != [0] and not _is_complete(run):
            problems.append(f"the exit code is {answer['codes']}: {answer['errors'][-300:]}")
        else:
            problems += _differences(expected, contents(run))
        yield f"{kind.name} {'with' if links else 'without'} links", problems
        shutil.rmtree(run)


def _story(rng: random.Random) -> str:
    return " ".join(rng.choice(WORDS.split()) for _ in range(rng.randint(10, 60))) + "."


def _is_complete(run: Path) -> bool:
    return (run / f"step-{STEPS:06}" / "training_state.json").exists()


def contents(run: Path) -> dict[str, Any]:
    """Return everything that a finished run must have the same, by name."""
    last = run / f"step-{STEPS:06}"
    found: dict[str, Any] = {}
    for file in ("model.safetensors", "training_state.safetensors"):
        for name, array in load_file(last / file).items():
            found[f"{file}: {name}"] = array.tobytes()
    numbers = json.loads((last / "training_state.json").read_text())
    found |= {f"counter {name}": numbers[name] for name in ("step", "n_tokens", "epoch", "batch")}
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [(record["step"], record["train_loss"]) for record in records if "train_loss" in record]
    found["losses of all steps"] = losses
    last_losses = [record["valid_loss"] for record in records if "valid_loss" in record and record["step"] == STEPS]
    found["validation of the last step"] = last_losses[-1:]
    return found


def _differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    return [f"{name} differs" for name in expected if expected[name] != found.get(name)]


@contextmanager
def opened_trainer() -> Iterator[Any]:
    """Open a process that has imported everything, and give a function that trains in its forks."""
    command = [sys.executable, str(Path(__file__).with_name("forked_trainer.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        to, back = process.stdin, process.stdout

        def train(argv: Sequence[str], **order: Any) -> Any:
            to.write(json.dumps({"argv": [*argv], "bare": True, **order}) + "\n")
            to.flush()
            return json.loads(back.readline())

        yield train
        to.close()


if __name__ == "__main__":
    sys.exit(main())
