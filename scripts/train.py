"""Train a small story model: stories in, a checkpoint that `tinystory chat -m RUN` loads out.

Stories come from a text file with <|endoftext|> between them, a folder written by datasets' save_to_disk, or the
hub (roneneldan/TinyStories). A run that was stopped goes on with --resume. The defaults are the recipe of the
shipped model.
"""

import argparse
import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import tinystory
from tinystory.config import ModelConfig
from tinystory.data import Piece, cut, read_stories, tokenize
from tinystory.errors import TinystoryError, UsageError
from tinystory.model import Transformer
from tinystory.tokenizer import Tokenizer
from tinystory.training import TrainConfig, TrainState, evaluate_loss, make_optimizers, save_run, train_step

HUB_DATASET = "roneneldan/TinyStories"
console = Console(stderr=True)


def main() -> int:
    """Parse, train, and turn mistakes into one line and an exit code."""
    args = parse_args()
    try:
        return train(args)
    except TinystoryError as error:
        print(f"train: {error}", file=sys.stderr)
        return error.exit_code


def parse_args() -> argparse.Namespace:
    """The command line: data, the model's shape, and every field of `TrainConfig`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", metavar="SOURCE", help="training stories: a .txt file, a saved datasets folder, or a hub name")
    add("--valid", metavar="SOURCE", help="validation stories (default: every 50th training story is held out)")
    add("--tokenizer", type=Path, metavar="FILE", help="a tokenizer.json, from scripts/train_tokenizer.py")
    add("--out", type=Path, required=True, metavar="RUN", help="the run's folder")
    add("--resume", action="store_true", help="go on with the run in --out, with its own configuration")
    add("--valid-stories", type=int, default=300, metavar="N", help="stories of a running validation (default 300)")
    add("--every", type=int, default=500, metavar="STEPS", help="validate and save every so many steps (default 500)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    shape = parser.add_argument_group("model (Llama family)")
    for name, default in {"n_layer": 6, "n_head": 3, "d_model": 192, "d_ff": 512}.items():
        shape.add_argument(flag(name), type=int, default=default, metavar="N", help=f"default {default}")
    optim = parser.add_argument_group("optimisation")
    for field in dataclasses.fields(TrainConfig):
        if isinstance(field.default, bool):
            optim.add_argument(flag(field.name), action=argparse.BooleanOptionalAction, default=field.default)
        else:
            optim.add_argument(
                flag(field.name),
                type=type(field.default),
                default=field.default,
                metavar="X",
                help=f"default {field.default}",
            )
    return parser.parse_args()


def flag(name: str) -> str:
    """A field's name as a flag."""
    return "--" + name.replace("_", "-")


def train(args: argparse.Namespace) -> int:
    """Build or resume a run, and step to its end or to a signal; the exit code says which."""
    if not args.data:
        raise UsageError(
            "--data is missing: give a text file of stories with <|endoftext|> between them, a folder saved by\n"
            f"datasets, or {HUB_DATASET} (downloads 2 GB from the Hugging Face hub)"
        )
    if args.every < 1 or args.valid_stories < 1:
        raise UsageError("--every and --valid-stories must be at least 1")
    model_config, config, tokenizer = resumed(args.out) if args.resume else started(args)
    torch.manual_seed(config.seed)
    model = Transformer(model_config, dropout=config.dropout)
    model.init_weights(config.seed)
    model.to(args.device)
    state = TrainState(model, make_optimizers(model, config))
    if args.resume:
        state.load(args.out / "latest")
    train_pieces, valid_pieces = load_pieces(args, tokenizer, config.row_len)
    forward = torch.compile(model) if config.compile else model
    console.print(f"{model_config.n_parameters:,} parameters, step {state.step:,} of {config.steps:,}")

    signals: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, _frame: signals.append(n))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    running, clock = 0.0, time.monotonic()
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("training", total=config.steps, completed=state.step)
        for rows in state.batches_ahead(train_pieces, config):
            if state.step >= config.steps or signals:
                break
            n_before = state.n_tokens
            loss, _ = train_step(state, forward, train_pieces, rows, config)
            running = 0.98 * running + 0.02 * loss if running else loss
            now = time.monotonic()
            speed = (state.n_tokens - n_before) / (now - clock)
            state.seconds, clock = state.seconds + now - clock, now
            shown = f"epoch {state.epoch} loss {running:.3f} {speed:,.0f} tokens/s"
            progress.update(bar, completed=state.step, description=shown)
            if state.step % args.every == 0 or state.step == config.steps:
                valid_loss = evaluate_loss(state.model, valid_pieces, config, torch.device(args.device))
                state.history.append({"step": state.step, "train_loss": running, "valid_loss": valid_loss})
                state.best_loss = min(state.best_loss, valid_loss)
                save_run(args.out, state, tokenizer, provenance(args, config, state))
                progress.console.print(
                    f"step {state.step:,}: {state.n_tokens:,} tokens, train {running:.4f}, "
                    f"valid {valid_loss:.4f} nats/token, {state.seconds / 60:.1f} min"
                )
                clock = time.monotonic()
    if signals and state.step:
        saved = save_run(args.out, state, tokenizer, provenance(args, config, state))
        console.print(f"stopped at step {state.step:,}, saved in {saved}; --resume goes on")
    return 128 + signals[0] if signals else 0


def started(args: argparse.Namespace) -> tuple[ModelConfig, TrainConfig, Tokenizer]:
    """A fresh run's configuration, written to its folder."""
    if args.tokenizer is None:
        raise UsageError("--tokenizer is missing: make one with scripts/train_tokenizer.py")
    tokenizer = Tokenizer.from_file(args.tokenizer)
    config = TrainConfig(**{field.name: getattr(args, field.name) for field in dataclasses.fields(TrainConfig)})
    model_config = ModelConfig.llama(
        tokenizer.vocab_size, args.n_layer, args.n_head, args.d_model, config.row_len, args.d_ff
    )
    if (args.out / "run.json").exists():
        raise UsageError(f"{args.out} holds a run already: go on with --resume, or choose another --out")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        saved = {"model": dataclasses.asdict(model_config), "training": dataclasses.asdict(config)}
        (args.out / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
        (args.out / "run.json").write_text(json.dumps(saved, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{args.out} cannot be written: {error.strerror}") from error
    return model_config, config, tokenizer


def resumed(run: Path) -> tuple[ModelConfig, TrainConfig, Tokenizer]:
    """The configuration a run was started with."""
    try:
        saved = json.loads((run / "run.json").read_text(encoding="utf-8"))
        model_config, config = ModelConfig(**saved["model"]), TrainConfig(**saved["training"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{run} holds no run to resume (no readable run.json)") from error
    return model_config, config, Tokenizer.from_file(run / "tokenizer.json")


def load_pieces(args: argparse.Namespace, tokenizer: Tokenizer, row_len: int) -> tuple[list[Piece], list[Piece]]:
    """Training and validation pieces; `--valid-stories` bounds the latter."""
    stories = list(read_stories(args.data))
    held_out = list(read_stories(args.valid, split="validation")) if args.valid else stories[::50]
    if not args.valid:
        stories = [story for index, story in enumerate(stories) if index % 50]
    if not stories or not held_out:
        raise UsageError(f"{args.data} has too few stories to train on and validate with")
    held_out = held_out[: args.valid_stories]
    console.print(f"{len(stories):,} stories to train on, {len(held_out):,} to validate with")
    return cut(tokenize(stories, tokenizer), row_len), cut(tokenize(held_out, tokenizer), row_len)


def provenance(args: argparse.Namespace, config: TrainConfig, state: TrainState) -> dict[str, Any]:
    """What the checkpoint's `tinystory.json` says about the run."""
    git = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return {
        "data": Path(args.data).name,
        "step": state.step,
        "tokens_seen": state.n_tokens,
        "epochs": state.epoch,
        "validation_nats_per_token": state.history[-1]["valid_loss"] if state.history else None,
        "seconds": round(state.seconds),
        "training": dataclasses.asdict(config),
        "git_commit": git.stdout.strip() or None,
        "versions": {"tinystory": tinystory.__version__, "torch": torch.__version__},
    }


if __name__ == "__main__":
    sys.exit(main())
