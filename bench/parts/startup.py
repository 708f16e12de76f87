"""The parts `start` and `memory`: the time of a process until the first byte of a story, and its largest memory.

The other sides are a short script with transformers, and limits: a Python that imports torch, plus an allowance.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial

from bench.ours import PROMPT, SEED, decoders_of, labelled, variants_of
from bench.pairs import Measurement, TimedRun, run_pairs, times
from bench.subject import Subject
from tinystory.errors import TinystoryError

__all__ = ["measure_processes", "run_process"]

SPECS = ("greedy", "top-p 0.9 | sample", "typical 0.9 | sample")
"""The decoders of the stories. The last one needs torch, because `typical` does."""

FLAGS = {"float32": ["--engine", "numpy"], "compiled": []}
"""The flags of the variants that are measured."""

# The script of a newcomer. It writes one token, as ours does, so that the process ends with its first word.
TRANSFORMERS = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(int(sys.argv[3]))
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
inputs = tokenizer(sys.argv[2], return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=1, do_sample=False)
print(tokenizer.decode(output[0], skip_special_tokens=True))
"""
IMPORT_TORCH = "import torch; print('.', flush=True)"
NOTHING = "print('.', flush=True)"

BYTES_PER_WEIGHT = 4
"""The bytes of a weight in memory, in float32. The file has bfloat16."""


def measure_processes(subject: Subject) -> list[Measurement]:
    """Measure start-up and memory of `tinystory generate`, and the start-up of `--help`."""
    python = [sys.executable, "-c"]
    theirs = partial(
        run_process, [*python, TRANSFORMERS, str(subject.directory), PROMPT, str(subject.settings.threads)], PROMPT
    )
    torch_alone = partial(run_process, [*python, IMPORT_TORCH])
    n_pairs, measurements = subject.settings.pairs, []
    first = theirs().output  # so that files are in the cache, and bytecode is written
    ways = [(spec, variant) for variant in variants_of(subject) if variant in FLAGS for spec in SPECS]
    for spec, variant in ways:
        flags = ["-m", str(subject.directory), "-d", spec, "-s", str(SEED), "-n", "1", "-q", *FLAGS[variant]]
        ours = partial(run_process, [sys.executable, "-m", "tinystory", "generate", PROMPT, *flags], PROMPT)
        warm = ours().output
        if spec == "greedy" and warm != first:
            raise TinystoryError(f"the first tokens differ: {warm!r} here, {first!r} there")
        without_torch = _needs_no_torch(subject, spec)
        shown = labelled(spec, variant)
        what = f"first token, {shown} ({'no' if without_torch else 'with'} torch)"
        beside_script = [
            Measurement("start", what, "CPU s", lambda run: run.cpu),
            Measurement("start", what, "s", lambda run: run.wall, aim=3),
            Measurement("memory", f"peak, {shown}", "MB", lambda run: run.peak),
        ]
        run_pairs(f"{shown}, transformers", n_pairs, beside_script, ours, theirs)
        beside_torch = limits(subject, what, shown, without_torch)
        run_pairs(f"{shown}, import torch", n_pairs, beside_torch, ours, torch_alone)
        measurements += [*beside_script, *beside_torch]
    return measurements + _measure_help(subject)


def limits(subject: Subject, what: str, spec: str, without_torch: bool) -> list[Measurement]:
    """Return measurements beside limits. A limit depends on the time and memory of `import torch` in the same pair."""
    weights = subject.config.n_parameters * BYTES_PER_WEIGHT / 1e6
    measurements = [
        *times("start", what, "import torch"),
        Measurement(
            "start", what, "s", lambda run: run.wall, peer="import torch + 0.4 s", aim=1,
            their_value=lambda run: run.wall + 0.4,
        ),
        Measurement(
            "memory", f"peak, {spec}", "MB", lambda run: run.peak, peer="import torch + 1.5 × weights + 30 MB", aim=1,
            their_value=lambda run: run.peak + 1.5 * weights + 30,
        ),
    ]  # fmt: skip
    if without_torch:
        limit = Measurement("start", what, "s", lambda run: run.wall, peer="0.8 s", aim=1, their_value=lambda _: 0.8)
        measurements.append(limit)
    return measurements


def _measure_help(subject: Subject) -> list[Measurement]:
    """Measure `tinystory --help` beside a Python that prints a dot, and beside a limit."""
    ours = partial(run_process, [sys.executable, "-m", "tinystory", "--help"])
    bare = partial(run_process, [sys.executable, "-c", NOTHING])
    ours()
    measurements = [
        Measurement("start", "--help", "CPU s", lambda run: run.cpu, peer="bare Python"),
        Measurement(
            "start", "--help", "CPU s", lambda run: run.cpu, peer="0.15 s", aim=1, their_value=lambda _: 0.15
        ),
    ]  # fmt: skip
    run_pairs("--help", subject.settings.pairs, measurements, ours, bare)
    return measurements


def _needs_no_torch(subject: Subject, spec: str) -> bool:
    """Return whether `tinystory generate` writes with this spec and model without torch."""
    from tinystory.checkpoint import read_header
    from tinystory.session.numpy_session import suffices

    [decoder] = decoders_of([spec])
    return suffices(read_header(subject.directory), decoder, "float32", "cpu")


def run_process(command: Sequence[str], prompt: str = "") -> TimedRun:
    """Run a command that writes the prompt and then some text. The wall time is until the first byte of that text.

    Raises:
        TinystoryError: the command failed, or did not write this.
    """
    begins = prompt.encode()
    output, first_byte = b"", 0.0
    started = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, bufsize=0)
        assert process.stdout is not None
        with process.stdout:
            while chunk := process.stdout.read(4096):
                output += chunk
                if not first_byte and len(output) > len(begins):
                    first_byte = time.perf_counter() - started
        _, status, usage = os.wait4(process.pid, 0)  # process.wait does not give the time and memory of the child
        process.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        message = errors.read().decode(errors="replace").strip()
    if process.returncode or not output.startswith(begins) or not first_byte:
        last = (message or "its output is not the prompt and some text").splitlines()[-1]
        raise TinystoryError(f"{' '.join(command[:4])} … failed: {last}")
    peak = usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e6 / 1024)  # macOS counts bytes, other systems KiB
    return TimedRun(output.decode(errors="replace").rstrip("\n"), usage.ru_utime + usage.ru_stime, first_byte, peak)
