"""Train a small story model: stories in, a checkpoint that `tinystory chat -m RUN` loads out.

Stories come from a text file with <|endoftext|> between them, a folder written by datasets' save_to_disk, or the
hub (roneneldan/TinyStories). A run that was stopped goes on with --resume.
"""

import argparse
import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import tinystory
from tinystory.config import ModelConfig
from tinystory.data import Piece, cut, read_stories, tokenize
from tinystory.errors import TinystoryError, UsageError
from tinystory.model import Transformer
from tinystory.tokenizer import Tokenizer
from tinystory.training import TrainConfig, TrainState, evaluate_loss, make_optimizers, save_state, train_step

HUB_DATASET = "roneneldan/TinyStories"
console = Console(stderr=True)


def parse_args() -> argparse.Namespace:
    """The command line; defaults are the recipe of the shipped model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--data",
        metavar="SOURCE",
        help="training stories: a .txt file, a saved datasets folder, or a hub name",
    )
    add(
        "--valid",
        metavar="SOURCE",
        help="validation stories (default: every 50th training story is held out)",
    )
    add("--tokenizer", type=Path, metavar="FILE", help="a tokenizer.json, from scripts/train_tokenizer.py")
    add("--out", type=Path, required=True, metavar="RUN", help="the run's folder")
    add("--resume", action="store_true", help="go on with the run in --out, with its own configuration")
    model = parser.add_argument_group("model (Llama family)")
    model.add_argument("--n-layer", type=int, default=6, metavar="N", help="default 6")
    model.add_argument("--n-head", type=int, default=3, metavar="N", help="default 3")
    model.add_argument("--d-model", type=int, default=192, metavar="N", help="width, default 192")
    model.add_argument("--d-ff", type=int, default=512, metavar="N", help="inner width, default 512")
    optim = parser.add_argument_group("optimisation")
    for field in dataclasses.fields(TrainConfig):
        flag = "--" + field.name.replace("_", "-")
        default = None if field.default is dataclasses.MISSING else field.default
        if isinstance(default, bool):
            optim.add_argument(flag, action="store_true")
        else:
            kind = int if default is None else type(default)
            optim.add_argument(flag, type=kind, default=default or (2000 if default is None else default), metavar="X")
    add(
        "--valid-stories",
        type=int,
        default=300,
        metavar="N",
        help="stories of a running validation, default 300",
    )
    add(
        "--every",
        type=int,
        default=500,
        metavar="STEPS",
        help="validate and save every so many steps, default 500",
    )
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    return parser.parse_args()


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
    train, valid = tokenize(stories, tokenizer), tokenize(held_out, tokenizer)
    return cut(train, row_len), cut(valid, row_len)


def provenance(args: argparse.Namespace, config: TrainConfig, state: TrainState) -> dict[str, object]:
    """What `tinystory.json` says about the run."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "data": Path(args.data).name,
        "steps": state.step,
        "tokens_seen": state.n_tokens,
        "epochs": state.epoch,
        "validation_nats_per_token": state.history[-1]["valid_loss"] if state.history else None,
        "seconds": round(state.seconds),
        "training": dataclasses.asdict(config),
        "git_commit": commit or None,
        "versions": {"tinystory": tinystory.__version__, "torch": torch.__version__},
    }


def main() -> int:
    """Parse, build or resume, loop, save."""
    args = parse_args()
    try:
        return run(args)
    except TinystoryError as error:
        print(f"train: {error}", file=sys.stderr)
        return error.exit_code


def run(args: argparse.Namespace) -> int:
    """Train to the end or to a signal; the exit code says which."""
    if not args.data:
        raise UsageError(
            "--data is missing: give a text file of stories with <|endoftext|> between them, a folder saved by "
            f"datasets,\nor --data {HUB_DATASET} (downloads 2 GB from the Hugging Face hub)"
        )
    if args.resume:
        saved = json.loads((args.out / "run.json").read_text(encoding="utf-8"))
        model_config, config = ModelConfig(**saved["model"]), TrainConfig(**saved["training"])
        tokenizer = Tokenizer.from_file(args.out / "tokenizer.json")
    else:
        if args.tokenizer is None:
            raise UsageError("--tokenizer is missing: make one with scripts/train_tokenizer.py")
        tokenizer = Tokenizer.from_file(args.tokenizer)
        config = TrainConfig(**{f.name: getattr(args, f.name) for f in dataclasses.fields(TrainConfig)})
        model_config = ModelConfig.llama(
            tokenizer.vocab_size, args.n_layer, args.n_head, args.d_model, config.row_len, args.d_ff
        )
        args.out.mkdir(parents=True, exist_ok=True)
        saved = {"model": dataclasses.asdict(model_config), "training": dataclasses.asdict(config)}
        (args.out / "run.json").write_text(json.dumps(saved, indent=2) + "\n", encoding="utf-8")
        (args.out / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")

    torch.manual_seed(config.seed)
    device = torch.device(args.device)
    model = Transformer(model_config, dropout=config.dropout)
    model.init_weights(config.seed)
    model.to(device)
    state = TrainState(model, make_optimizers(model, config))
    if args.resume:
        state.load(args.out / "latest")
    train, valid = load_pieces(args, tokenizer, config.row_len)
    forward = torch.compile(model) if config.compile else model
    console.print(f"{model_config.n_parameters:,} parameters, step {state.step:,} of {config.steps:,}")

    stopped: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, _frame: stopped.append(n))
    return loop(args, state, forward, train, valid, config, tokenizer, stopped)


def loop(
    args: argparse.Namespace,
    state: TrainState,
    forward: torch.nn.Module,
    train: list[Piece],
    valid: list[Piece],
    config: TrainConfig,
    tokenizer: Tokenizer,
    stopped: list[int],
) -> int:
    """Step, report, save; 0 at the end, 128 + signal when stopped."""
    device = torch.device(args.device)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("training", total=config.steps, completed=state.step)
        running, started = 0.0, time.monotonic()
        for rows in state.batches_ahead(train, config):
            if state.step >= config.steps or stopped:
                break
            n_before = state.n_tokens
            loss, _ = train_step(state, forward, train, rows, config)
            elapsed = time.monotonic() - started
            started += elapsed
            state.seconds += elapsed
            running = loss if not running else 0.98 * running + 0.02 * loss
            speed = (state.n_tokens - n_before) / elapsed
            progress.update(
                task,
                completed=state.step,
                description=f"epoch {state.epoch} loss {running:.3f} {speed:,.0f} tokens/s",
            )
            if state.step % args.every == 0 or state.step == config.steps:
                valid_loss = evaluate_loss(state.model, valid, config, device)
                state.history.append({"step": state.step, "train_loss": running, "valid_loss": valid_loss})
                state.best_loss = min(state.best_loss, valid_loss)
                save_state(args.out, state)
                progress.console.print(
                    f"step {state.step:,}: {state.n_tokens:,} tokens, train {running:.4f}, "
                    f"valid {valid_loss:.4f} nats/token, {state.seconds / 60:.1f} min"
                )
                started = time.monotonic()
        save_state(args.out, state)
    return 128 + stopped[0] if stopped else 0


if __name__ == "__main__":
    sys.exit(main())
