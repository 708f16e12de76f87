"""How fast tinystory is beside transformers: its `generate` and its `Trainer`, on the same weights.

Every figure comes from interleaved pairs (ours, theirs, then theirs, ours), so that a machine busy with other things
slows both alike; ratios are taken within a pair, and above 1 tinystory is ahead. CPU time counts the work done, wall
time what a person waits. Six parts:

    decode   tokens per second at batch 1, end of story disabled, so that both write the same number of tokens
    start    a whole process, from its start to the first byte of the story
    memory   the peak of that process
    train    scored tokens per second of training, the model of -m and AdamW on both sides
    studio   what commands of the studio cost, not beside transformers but beside writing one story
    chat     what a chat takes to its prompt and to its first story, beside importing torch
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench_chat import measure_chat
from bench_pairs import Measurement, Run, run_pairs, timed
from bench_studio import measure_studio
from bench_train import measure_training
from rich import box
from rich.console import Console
from rich.table import Table

from tinystory.errors import TinystoryError, UsageError
from tinystory.loading import find_model

if TYPE_CHECKING:
    from tinystory.decoding import Session
    from tinystory.loading import LoadedModel

PARTS = ("decode", "start", "memory", "train", "studio", "chat")
PROMPT = "Once upon a time"
SEED = 7
SPECS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "top-k 40 | sample 0.8": {"do_sample": True, "top_k": 40, "temperature": 0.8},
}
"""Ours -> the same in the words of `generate`."""

TIE = 1e-3
"""Two logits nearer than this may change places by rounding."""

# What a newcomer would write; one token, as ours, so that the process ends with its first word.
TRANSFORMERS_SCRIPT = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(int(sys.argv[3]))
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
inputs = tokenizer(sys.argv[2], return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=1, do_sample=False)
print(tokenizer.decode(output[0], skip_special_tokens=True))
"""


COLUMNS = ("", "tinystory", "transformers", "ratio", "range", "pairs")


def main() -> int:
    """Measure, print a table, and turn mistakes into one line and an exit code."""
    args = parse_args()
    # Before NumPy or torch start their thread pools; the children inherit it.
    os.environ |= {name: str(args.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode, ours shall have it too
    try:
        return bench(args)
    except TinystoryError as error:
        print(f"bench: {error}", file=sys.stderr)
        return error.exit_code


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("-m", "--model", metavar="DIR", help="a checkpoint of ours (default: the shipped model)")
    add("--pairs", type=int, default=7, metavar="N", help="pairs of each measurement (default 7)")
    add("--tokens", type=int, default=200, metavar="N", help="tokens of a decoded story (default 200)")
    add("--threads", type=int, default=1, metavar="N", help="threads of both sides (default 1)")
    add("--data", nargs="+", metavar="SOURCE", help="stories to train on (default: random tokens, as long as stories)")
    add("--rows", type=int, default=4, metavar="N", help="rows of a training step (default 4)")
    add("--steps", type=int, default=8, metavar="N", help="training steps that are timed (default 8)")
    add("--only", default=",".join(PARTS), metavar="PARTS", help=f"some of {','.join(PARTS)} (default all)")
    add("--json", type=Path, metavar="FILE", help="write all values there")
    add("--markdown", action="store_true", help="print the table as Markdown")
    return parser.parse_args()


def bench(args: argparse.Namespace) -> int:
    """Run the parts asked for.

    Raises:
        UsageError: a part or a number is wrong, or the model is not ours.
        TinystoryError: a side failed, or the two did not do the same work.
    """
    parts = args.only.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        raise UsageError(f"{unknown[0]!r} is no part of the benchmark; there are {', '.join(PARTS)}")
    for name in ("pairs", "tokens", "threads", "rows", "steps"):
        if getattr(args, name) < 1:
            raise UsageError(f"--{name} is {getattr(args, name)}; it must be at least 1")
    _, header = find_model(args.model)
    if header.config is None:
        raise UsageError(f"{header.directory} runs through transformers on both sides; give a checkpoint of ours")
    found: list[Measurement] = []
    checks: dict[str, Any] = {}
    # Children first: one that is started by a large process may be counted with that size.
    if {"start", "memory"} & set(parts):
        found += measure_processes(header.directory, args)
    if "chat" in parts:
        found += measure_chat(header.directory, args)
    if "decode" in parts:
        found += measure_decode(header.directory, args, checks)
    if "studio" in parts:
        found += measure_studio(header.directory, args)
    if "train" in parts:
        found += measure_training(header.directory, header.config, args, checks)
    found = [measurement for part in PARTS for measurement in found if measurement.part == part in parts]
    about = {
        "model": args.model or "default", "parameters": header.config.n_parameters, "prompt": PROMPT,
        "tokens": args.tokens, "rows": args.rows, "steps": args.steps, "threads": args.threads, "pairs": args.pairs,
        "processor": processor(), "cores": os.cpu_count(), "system": platform.system(),
        "versions": versions(), "checks": checks,
    }  # fmt: skip
    if args.json:
        report = about | {"measurements": [measurement.as_json() for measurement in found]}
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    show(found, about, args.markdown)
    return 0


# --- whole processes ---


def measure_processes(directory: Path, args: argparse.Namespace) -> list[Measurement]:
    """Start-up and peak memory of one-shot generation, to the first token."""
    flags = ["-m", str(directory), "-d", "greedy", "-n", "1", "-q"]
    ours = [sys.executable, "-m", "tinystory", "generate", PROMPT, *flags]
    theirs = [sys.executable, "-c", TRANSFORMERS_SCRIPT, str(directory), PROMPT, str(args.threads)]
    warm = run_process(ours), run_process(theirs)  # files into the cache, bytecode written
    if warm[0].output != warm[1].output:
        raise TinystoryError(f"the first tokens differ: {warm[0].output!r} here, {warm[1].output!r} there")
    measurements = [
        Measurement("start", "process to first token", "CPU s", lambda run: run.cpu),
        Measurement("start", "process to first token", "s", lambda run: run.wall),
        Measurement("memory", "peak memory", "MB", lambda run: run.peak),
    ]
    run_pairs("processes", args.pairs, measurements, lambda: run_process(ours), lambda: run_process(theirs))
    return measurements


def run_process(command: Sequence[str]) -> Run:
    """Run a command that writes the prompt and a story.

    Raises:
        TinystoryError: it failed or wrote no story.
    """
    prompt = PROMPT.encode()
    output, first_byte = b"", 0.0
    started = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, bufsize=0)
        assert process.stdout is not None
        with process.stdout:
            while chunk := process.stdout.read(4096):
                output += chunk
                if not first_byte and len(output) > len(prompt):
                    first_byte = time.perf_counter() - started
        _, status, usage = os.wait4(process.pid, 0)  # instead of process.wait: it tells what the child took
        process.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip()
    if process.returncode or not output.startswith(prompt) or not first_byte:
        last = (said or "it wrote no story").splitlines()[-1]
        raise TinystoryError(f"{' '.join(command[:4])} … failed: {last}")
    peak = usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e6 / 1024)  # bytes there, KiB elsewhere
    return Run(output.decode(errors="replace").rstrip("\n"), usage.ru_utime + usage.ru_stime, first_byte, peak)


# --- decoding ---


def measure_decode(directory: Path, args: argparse.Namespace, checks: dict[str, Any]) -> list[Measurement]:
    """Tokens per second at batch 1, prompt included, text made on our side; `checks` gets what was compared."""
    import torch

    from tinystory.loading import load

    torch.set_num_threads(args.threads)
    loaded = load(str(directory))
    n_tokens, session = args.tokens, loaded.session
    prompt_ids = loaded.tokenizer.encode(PROMPT)
    if len(prompt_ids) + n_tokens > session.max_seq_len:
        raise UsageError(f"--tokens is {n_tokens}; prompt and story may have {session.max_seq_len} tokens together")
    session.eos_ids = frozenset()
    generate = transformers_generate(directory, prompt_ids, n_tokens)
    found: list[Measurement] = []
    for spec, options in SPECS.items():
        ours, theirs = our_generate(loaded, spec, n_tokens), partial(generate, options)
        warm = ours(), theirs()
        if {len(token_ids) for token_ids in warm} != {n_tokens}:
            raise TinystoryError(f"{n_tokens} tokens asked, {len(warm[0])} and {len(warm[1])} written")
        if spec == "greedy":
            checks["greedy_ids_equal"] = warm[0] == warm[1]
            checks["numerical_ties"] = sum(
                numerical_ties(session, prompt_ids, list(ids)) for ids in set(map(tuple, warm))
            )
        measurements = [
            Measurement("decode", spec, "tokens / CPU s", lambda run: n_tokens / run.cpu, more_is_better=True),
            Measurement("decode", spec, "tokens / s", lambda run: n_tokens / run.wall, more_is_better=True),
        ]
        run_pairs(spec, args.pairs, measurements, partial(timed, ours), partial(timed, theirs))
        found += measurements
    return found


def our_generate(loaded: "LoadedModel", spec: str, n_tokens: int) -> Callable[[], list[int]]:
    """A function that writes one story from an empty cache."""
    from tinystory.generate import Ended, StoryRequest, write
    from tinystory.plugins import discover
    from tinystory.spec import parse_spec

    request = StoryRequest(PROMPT, parse_spec(spec, discover()), SEED, n_tokens)

    def run() -> list[int]:
        events = write(loaded.session.open(), loaded.tokenizer, [request])
        return next(list(event.result.token_ids) for event in events if isinstance(event, Ended))

    return run


def transformers_generate(
    directory: Path, prompt_ids: list[int], n_tokens: int
) -> Callable[[dict[str, Any]], list[int]]:
    """`generate` on the same weights, with the options given."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    model.eval()
    model.generation_config.eos_token_id = None
    input_ids = torch.tensor([prompt_ids])
    fixed = {"attention_mask": torch.ones_like(input_ids), "max_new_tokens": n_tokens, "pad_token_id": 0}

    def run(options: dict[str, Any]) -> list[int]:
        torch.manual_seed(SEED)
        found: list[int] = model.generate(input_ids, **fixed, **options)[0, len(prompt_ids) :].tolist()
        return found

    return run


def numerical_ties(session: "Session", prompt_ids: list[int], greedy_ids: list[int]) -> int:
    """How often, along a greedy story, the likeliest token of our whole-story pass is another by rounding alone.

    Raises:
        TinystoryError: it is another one and the two were no tie.
    """
    import torch

    fresh = session.open()
    first = fresh.prefill([prompt_ids])
    logits = torch.cat([first, fresh.decode(torch.tensor([greedy_ids[:-1]]))[0]]) if len(greedy_ids) > 1 else first
    behind = logits.max(dim=-1).values - logits.gather(1, torch.tensor(greedy_ids)[:, None])[:, 0]
    if behind.max() > TIE:
        at = int(behind.argmax())
        raise TinystoryError(f"greedy token {at} is not the likeliest: it is {behind[at]:.4f} nats behind")
    return int((behind > 0).sum())


# --- the report ---


def processor() -> str:
    """The processor's name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def versions() -> dict[str, str]:
    """Of all that was measured."""
    names = ("tinystory", "torch", "transformers", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def show(found: Sequence[Measurement], about: dict[str, Any], markdown: bool) -> None:
    """Print the table and what it was measured on."""
    lines = [
        f"{about['model']}, {about['parameters'] / 1e6:.1f}M parameters, float32, threads: {about['threads']}; "
        f"{about['tokens']} tokens a story, {about['rows']} rows a training step; "
        f"medians of {about['pairs']} interleaved pairs",
        f"{about['processor']}, {about['cores']} cores, {about['system']}; "
        + ", ".join(f"{name} {number}" for name, number in about["versions"].items()),
    ]
    checks = about["checks"]
    if "greedy_ids_equal" in checks:
        same = "the same" if checks["greedy_ids_equal"] else "not the same"
        lines.append(f"greedy token ids of both sides: {same}, numerical ties: {checks['numerical_ties']}")
    if "training_loss_difference" in checks:
        apart = checks["training_loss_difference"]
        lines.append(f"mean training losses of both sides on the same rows: {apart:.1e} nats per token apart")
    if markdown:
        cells = [[cell.replace("|", r"\|") for cell in measurement.row()] for measurement in found]
        rows = [COLUMNS, ("---", *["---:"] * (len(COLUMNS) - 1)), *cells]
        print("\n".join([f"| {' | '.join(row)} |" for row in rows] + ["", *(f"{line}.  " for line in lines)]))
        return
    table = Table(*COLUMNS, box=box.SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify = "right"
    for measurement in found:
        table.add_row(*measurement.row())
    console = Console()
    console.print(table)
    for line in lines:
        console.print(line, style="dim", highlight=False, markup=False)


if __name__ == "__main__":
    sys.exit(main())
