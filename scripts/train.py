"""Train a story model: stories in, a checkpoint that `tinystory chat -m RUN` loads out.

  python scripts/train.py --preset tiny --data stories.txt --out runs/mine
  torchrun --nproc-per-node=2 scripts/train.py --preset small --data roneneldan/TinyStories --out runs/two

Fields come from flags, else from --config FILE (TOML), else from --preset, else from their defaults. A run that was
stopped, by Ctrl-C or worse, goes on with --resume RUN.

It has more than 400 lines, because it has the parts of a run in the order in which they happen.
"""

import argparse
import dataclasses
import importlib.util
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.nn.parallel import DistributedDataParallel

import tinystory
from tinystory.checkpoint import load_model
from tinystory.checkpoint.shipped import find_model
from tinystory.checkpoint.tokenizers import find_tokenizer
from tinystory.data.batches import BatchPlan, collate, share
from tinystory.data.prepare import prepare
from tinystory.data.selection import Selection
from tinystory.data.shards import TokenShards, fingerprint
from tinystory.errors import TinystoryError, UsageError
from tinystory.model.transformer import Transformer
from tinystory.safe.showing import visible
from tinystory.text.tokenizer import Tokenizer
from tinystory.training.config import PRESETS, RunConfig, fields_of, resolve_run
from tinystory.training.distributed import Ranks, joined
from tinystory.training.plotting import plot_metrics, read_metrics
from tinystory.training.run import Run, TrainState
from tinystory.training.sampling import sample_stories
from tinystory.training.step import (
    averaged,
    backward,
    evaluate_loss,
    learning_rate_scale,
    make_optimizers,
    optimizer_step,
    update_average,
)

HUB_DATASET = "roneneldan/TinyStories"


def main() -> int:
    """Parse, train, and turn mistakes into one line and an exit code."""
    args = parse_args()
    try:
        with joined(args.device) as ranks:
            return train(args, ranks)
    except TinystoryError as error:
        print(f"train: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:  # a log, a link or a plot that cannot be written; a checkpoint says so itself
        print(f"train: cannot write {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before the first step, which catches signals itself
        return 130


def parse_args() -> argparse.Namespace:
    """The command line: every field of a run is a flag."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, metavar="RUN", help="the folder of a new run")
    add("--resume", type=Path, metavar="RUN", help="go on with a run; fields of its training may be changed")
    add("--preset", choices=PRESETS, help="where the fields start from")
    add("--config", type=Path, metavar="FILE", help="a TOML file of fields")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    add("--every", type=int, default=0, metavar="STEPS", help="validate and save every so many steps too")
    add("--log-every", type=int, default=10, metavar="STEPS", help="steps between log lines (default 10)")
    add("--keep", type=int, default=2, metavar="K", help="checkpoints kept beside the best (default 2)")
    add("--tensorboard", action="store_true", help="log to RUN/tensorboard too")
    fields = parser.add_argument_group("fields of a run (tinystory/presets.py and tinystory/training.py explain them)")
    for name, (_, field, kind) in fields_of().items():
        flag, unset = "--" + name.replace("_", "-"), argparse.SUPPRESS
        if kind is bool:
            fields.add_argument(
                flag, action=argparse.BooleanOptionalAction, default=unset, help=f"default {field.default}"
            )
        elif kind in (int, float, str):
            fields.add_argument(flag, type=kind, default=unset, metavar="X", help=f"default {field.default}")
        else:
            taken = "checkpoints" if name == "teachers" else "files, globs, folders, or a hub dataset"
            fields.add_argument(flag, nargs="+", default=unset, metavar="SOURCE", help=taken)
    args = parser.parse_args()
    if (args.out is None) == (args.resume is None):
        parser.error("give either --out RUN for a new run or --resume RUN")
    if args.every < 0 or args.log_every < 1 or args.keep < 1:
        parser.error("--every must be at least 0, --log-every and --keep at least 1")
    return args


def train(args: argparse.Namespace, ranks: Ranks) -> int:
    """Step to the end of a run, or to a signal; the exit code says which."""
    run, config, tokenizer = open_run(args, ranks)
    learn, valid = load_stories(run, config, tokenizer, ranks)
    hyper, row_len, batching = config.training, config.model.max_seq_len, config.data.batching
    torch.manual_seed(hyper.seed + ranks.rank)  # of dropout; the weights are drawn from the seed alone
    model = Transformer(config.model.model_config(tokenizer.vocab_size), dropout=hyper.dropout)
    model.init_weights(hyper.seed)
    if config.model.init and not args.resume:
        model.load_state_dict(load_model(find_model(config.model.init)[1]).state_dict())
    model.to(ranks.device)
    teachers = [load_teacher(name, config, tokenizer, ranks) for name in hyper.teachers]
    average = {name: p.detach().clone() for name, p in model.named_parameters()} if hyper.ema else {}
    state = TrainState(model, make_optimizers(model, hyper), average)
    if args.resume:
        state.load(run.latest, ranks, hyper.seed)
    forward: Any = DistributedDataParallel(model) if ranks.size > 1 else model
    forward = torch.compile(forward) if hyper.compile else forward

    plan = BatchPlan(learn, row_len, hyper.rows, batching=batching, seed=hyper.seed)
    valid_plan = BatchPlan(valid, row_len, hyper.micro_rows, batching=batching)
    n_steps = hyper.steps or hyper.epochs * len(plan.epoch(0))
    signals = catch_signals()
    log_tensorboard = tensorboard(args, run, ranks)
    with Display(ranks, n_steps) as display:
        display.line(
            f"{model.config.n_parameters:,} parameters, {len(learn):,} stories to learn from, {len(valid):,} to "
            f"validate with, step {state.step:,} of {n_steps:,}"
        )
        if not importlib.util.find_spec("matplotlib"):
            display.line("matplotlib is not installed, so no plots: pip install 'tinystory[train]'")
        if progress(state, n_steps, config, ranks) >= 1:
            display.line("this run is complete: more --steps, --epochs or --max-minutes let it go on")
            return 0
        meter, clock = Meter(), time.monotonic()
        for epoch, batch, rows in plan.ahead(state.epoch, state.batch):
            state.epoch, state.batch = epoch, batch
            own = share(rows, ranks.rank, ranks.size)
            parts = [own[i : i + hyper.micro_rows] for i in range(0, len(own), hyper.micro_rows)]
            # A rank that the tail of an epoch leaves without rows takes part with one position of padding.
            micro_batches = [plan.collate(part) for part in parts] or [collate(plan.pieces, [[]], 1)]
            n_tokens = plan.count(rows)
            loss = float(ranks.sum(backward(forward, micro_batches, n_tokens, hyper, ranks, teachers)))
            if not math.isfinite(loss):
                raise TinystoryError(
                    f"the loss is {loss} in step {state.step + 1}; its batch ends at batch {state.batch} of epoch "
                    f"{state.epoch} and has the pieces {str(rows)[:300]}"
                )
            scale = learning_rate_scale(progress(state, n_steps, config, ranks), hyper)
            norm = optimizer_step(model, state.optimizers, scale, hyper)
            state.step += 1
            state.n_tokens += n_tokens
            if average:
                update_average(average, model, hyper.ema, state.step)
            now = time.monotonic()
            state.seconds, clock = state.seconds + now - clock, now
            meter.add(loss, n_tokens)
            display.step(state, meter)
            if state.step % args.log_every == 0 and ranks.first:
                record = meter.record(state) | {"lr": hyper.lr * scale, "grad_norm": norm}
                run.log(record)
                log_tensorboard(record)
                meter = Meter()
            stop = ranks.largest(signals[0] if signals else 0)
            done = progress(state, n_steps, config, ranks) >= 1
            if done or stop or batch == 0 or (args.every and state.step % args.every == 0):
                found = validate(state, valid_plan, valid, config, ranks)
                if ranks.first:
                    display.line(keep(args, run, config, tokenizer, state, found))
                    log_tensorboard(found)
                clock = time.monotonic()
            if done or stop:
                return 128 + stop if stop else 0
    raise UsageError("there is no story to learn from")


def open_run(args: argparse.Namespace, ranks: Ranks) -> tuple[Run, RunConfig, Tokenizer]:
    """A new run's configuration, written to its folder, or that of a run to go on with."""
    flags = {name: getattr(args, name) for name in fields_of() if hasattr(args, name)}
    if args.resume:
        run = Run(args.resume)
        config, tokenizer = run.configuration()
        if fixed := [name for name in flags if fields_of()[name][0] != "training"]:
            raise UsageError(f"{', '.join(fixed)} cannot change in a run that goes on; start another with --out")
        if {"rows", "seed"} & flags.keys():
            raise UsageError("rows and seed cannot change in a run that goes on: its place in the data would be lost")
        training = dataclasses.replace(config.training, **flags)
        if ranks.first:
            run.forget_after(TrainState.step_of(run.latest))
        return run, dataclasses.replace(config, training=training), tokenizer
    config = resolve_run(args.preset, args.config, flags)
    if not config.data.data:
        raise UsageError(
            "--data is missing: give story files (.txt with <|endoftext|> between stories, .jsonl, .parquet),\n"
            f"a folder saved by datasets, or {HUB_DATASET} (2 GB from the Hugging Face hub)"
        )
    run, tokenizer = Run(args.out), find_tokenizer(config.data.tokenizer)
    shape = config.model.model_config(tokenizer.vocab_size)  # an impossible one is refused before anything is written
    if config.model.init and (theirs := find_model(config.model.init)[1].config) and theirs != shape:
        raise UsageError(
            f"{config.model.init} has a vocabulary of {theirs.vocab_size:,} tokens, {config.data.tokenizer} one of "
            f"{tokenizer.vocab_size:,}"
        )
    ranks.wait()
    if ranks.first:
        run.begin(config, tokenizer)
    return run, config, tokenizer


def load_teacher(name: str, config: RunConfig, tokenizer: Tokenizer, ranks: Ranks) -> Transformer:
    """A model to learn from, frozen; it must share the run's vocabulary and see as far."""
    name, header = find_model(name)
    if header.config is None:
        raise UsageError(f"{name} is neither a Llama nor a GPT-2 model, so it cannot teach")
    if fingerprint(find_tokenizer(str(header.directory))) != fingerprint(tokenizer):
        raise UsageError(f"{name} has another vocabulary than this run, so it cannot teach")
    if header.config.max_seq_len < config.model.max_seq_len:
        raise UsageError(f"{name} sees {header.config.max_seq_len} tokens, a row has {config.model.max_seq_len}")
    return load_model(header, device=str(ranks.device)).eval().requires_grad_(False)


def load_stories(run: Run, config: RunConfig, tokenizer: Tokenizer, ranks: Ranks) -> tuple[TokenShards, TokenShards]:
    """Training and validation stories: prepared ones, or tokenised now into the run's folder by the first rank."""
    folder = Path(config.data.data[0])
    prepared = len(config.data.data) == 1 and (folder / "train" / "manifest.json").is_file()
    if not prepared:
        folder = run.folder / "data"
        if ranks.first:
            prepare_stories(folder, config, tokenizer)
        ranks.wait()
    learn, valid = TokenShards(folder / "train"), TokenShards(folder / "valid")
    if learn.recipe["tokenizer"] != valid.recipe["tokenizer"] or learn.recipe["tokenizer"] != fingerprint(tokenizer):
        raise UsageError(
            f"{folder} was prepared with another vocabulary; give the same --tokenizer, or prepare it again"
        )
    return learn, valid.first(config.data.valid_stories or len(valid))


def prepare_stories(folder: Path, config: RunConfig, tokenizer: Tokenizer) -> None:
    """Tokenise both parts, unless they are there already."""
    data = config.data
    chosen = Selection(data.fraction, 0.0 if data.valid else data.test_split, "train", config.training.seed)
    held_out = Selection() if data.valid else dataclasses.replace(chosen, part="test")
    for part, sources, selection, split in (
        ("train", data.data, chosen, "train"),
        ("valid", data.valid or data.data, held_out, "validation" if data.valid else "train"),
    ):
        shards = prepare(sources, tokenizer, folder / part, split=split, streaming=data.streaming, selection=selection)
        print(f"{part} stories: {shards.report}", file=sys.stderr)


def progress(state: TrainState, n_steps: int, config: RunConfig, ranks: Ranks) -> float:
    """How much of the run is done, by steps or by the clock, whichever is further; the same on all ranks."""
    by_steps = state.step / n_steps
    if not config.training.max_minutes:
        return min(1.0, by_steps)
    by_clock = state.seconds / 60 / config.training.max_minutes
    return min(1.0, ranks.largest(int(1e6 * max(by_steps, by_clock))) / 1e6)


def validate(
    state: TrainState, plan: BatchPlan, stories: TokenShards, config: RunConfig, ranks: Ranks
) -> dict[str, Any]:
    """Loss, perplexity, bits per byte and accuracy on the validation stories, as a log record."""
    rows = (share(batch, ranks.rank, ranks.size) for batch in plan.epoch())
    with averaged(state.model, state.average):
        found = evaluate_loss(state.model, (plan.collate(own) for own in rows if own), config.training, ranks)
    return {
        "step": state.step,
        "epoch": state.epoch,
        "tokens": state.n_tokens,
        "seconds": round(state.seconds, 3),
        "valid_loss": found.loss,
        "valid_perplexity": found.perplexity,
        "valid_bits_per_byte": found.loss * found.n_tokens / math.log(2) / stories.n_bytes,
        "valid_accuracy": found.accuracy,
    }


def keep(
    args: argparse.Namespace,
    run: Run,
    config: RunConfig,
    tokenizer: Tokenizer,
    state: TrainState,
    found: dict[str, Any],
) -> str:
    """Save the checkpoint, write the samples and the plot; the line to show."""
    best = found["valid_loss"] < state.best_loss
    state.best_loss = min(state.best_loss, found["valid_loss"])
    run.save(state, tokenizer, provenance(config, state, found), best=best, keep=args.keep)
    run.log(found)
    with averaged(state.model, state.average):
        stories = sample_stories(state.model, tokenizer)
    run.keep_samples("".join(f"== step {state.step}, {spec}\n{text}\n\n" for spec, text in stories.items()))
    if importlib.util.find_spec("matplotlib"):
        records = read_metrics(run.folder / "metrics.jsonl")
        for suffix in ("png", "svg"):
            plot_metrics(records, run.folder / f"metrics.{suffix}")
    samples = "".join(f"\n  {spec}: {visible(' '.join(text.split()))}" for spec, text in stories.items())
    return (
        f"step {state.step:,}, epoch {state.epoch}, {state.n_tokens:,} tokens, {state.seconds / 60:.1f} min: "
        f"valid {found['valid_loss']:.4f} nats/token, perplexity {found['valid_perplexity']:.2f}, "
        f"{found['valid_bits_per_byte']:.4f} bits/byte, accuracy {found['valid_accuracy']:.1%}"
        f"{' (best)' if best else ''}{samples}"
    )


def provenance(config: RunConfig, state: TrainState, found: dict[str, Any]) -> dict[str, Any]:
    """What the checkpoint's `tinystory.json` says about the run."""
    stored = config.to_json()
    stored["data"] |= {name: [Path(source).name for source in stored["data"][name]] for name in ("data", "valid")}
    return found | {
        "seconds": round(state.seconds),
        "run": stored,
        "git_commit": git_commit(),
        "versions": {"tinystory": tinystory.__version__, "torch": torch.__version__},
    }


def git_commit() -> str | None:
    """The commit of this script's checkout, where there is one and git is installed."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return found.stdout.strip() or None


def catch_signals() -> list[int]:
    """Note SIGINT and SIGTERM instead of dying: the step is finished and saved first."""
    received: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, _frame: received.append(n))
    return received


def tensorboard(args: argparse.Namespace, run: Run, ranks: Ranks) -> Callable[[dict[str, Any]], None]:
    """What takes a log record to TensorBoard, or nowhere."""
    if not args.tensorboard or not ranks.first:
        return lambda record: None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError("--tensorboard needs tensorboard: pip install 'tinystory[tensorboard]'") from error
    writer = SummaryWriter(str(run.folder / "tensorboard"))

    def log(record: dict[str, Any]) -> None:
        for name, value in record.items():
            writer.add_scalar(name, value, record["step"])
        writer.flush()

    return log


class Meter:
    """Loss and speed since the last log line."""

    def __init__(self) -> None:
        self.nats, self.n_tokens, self.started = 0.0, 0, time.monotonic()

    def add(self, loss: float, n_tokens: int) -> None:
        """Take in a step: its mean loss in nats per token, and its tokens."""
        self.nats, self.n_tokens = self.nats + loss * n_tokens, self.n_tokens + n_tokens

    def record(self, state: TrainState) -> dict[str, Any]:
        """A log record."""
        return {
            "step": state.step,
            "epoch": state.epoch,
            "tokens": state.n_tokens,
            "seconds": round(state.seconds, 3),
            "train_loss": self.nats / self.n_tokens,
            "tokens_per_second": self.n_tokens / max(time.monotonic() - self.started, 1e-9),
        }


class Display:
    """Progress on standard error of the first rank: a bar in a terminal, else a line every half minute."""

    SECONDS = 30.0

    def __init__(self, ranks: Ranks, n_steps: int) -> None:
        self.console = Console(stderr=True, quiet=not ranks.first, markup=False, highlight=False)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task("", total=n_steps)
        self.n_steps, self.said = n_steps, time.monotonic()

    def __enter__(self) -> "Display":
        self.bar.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.bar.stop()

    def line(self, text: str) -> None:
        """Print above the bar."""
        self.bar.console.print(text, soft_wrap=True)

    def step(self, state: TrainState, meter: Meter) -> None:
        """Show a step."""
        now = meter.record(state)
        text = f"epoch {state.epoch} loss {now['train_loss']:.3f} {now['tokens_per_second']:,.0f} tokens/s"
        self.bar.update(self.task, completed=state.step, description=text)
        if not self.console.is_terminal and time.monotonic() - self.said > self.SECONDS:
            self.said = time.monotonic()
            self.line(f"step {state.step:,} of {self.n_steps:,} {text}")


if __name__ == "__main__":
    sys.exit(main())
