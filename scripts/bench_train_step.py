"""Speed of a training step beside that of another checkout, packed rows, AdamW and Muon, steps taken in turn.

  git worktree add ../before COMMIT
  OMP_NUM_THREADS=1 python scripts/bench_train_step.py --before ../before --data valid.txt --shape 6x320x5x896 --bf16

Each checkout has a process of its own; both draw the same weights and learn from the same rows.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

from bench_pairs import Clock

N_STORIES = 1200
N_WARM = 2
SEED = 7


def main() -> None:
    """Print the median ratio of tokens a CPU second, after over before, and how far the losses are apart."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--before", type=Path, metavar="CHECKOUT", help="the other checkout's root")
    add("--data", nargs="+", required=True, metavar="SOURCE", help="stories")
    add("--shape", default="6x320x5x896", metavar="LxCxHxF", help="layers, width, heads, inner width")
    add("--rows", type=int, default=8, help="rows of 512 a step (default 8)")
    add("--pairs", type=int, default=7, help="steps of each (default 7)")
    add("--bf16", action="store_true")
    add("--compile", action="store_true")
    args = parser.parse_args()
    if args.before is None:
        return take_steps(args)
    here = Path(__file__).resolve().parent.parent
    both = [stepping(root.resolve()) for root in (args.before, here)]
    pairs = []
    for number in range(N_WARM + args.pairs):
        turn = both if number % 2 else both[::-1]
        told = {id(process): asked(process) for process in turn}
        pairs.append([told[id(process)] for process in both])
    for process in both:
        process.communicate()
    apart = max(abs(before["loss"] - after["loss"]) for before, after in pairs)
    speeds = [[run["tokens"] / run["cpu"] for run in pair] for pair in pairs[N_WARM:]]
    ratios = [after / before for before, after in speeds]
    walls = statistics.median(before["wall"] / after["wall"] for before, after in pairs[N_WARM:])
    before, after = (statistics.median(values) for values in zip(*speeds, strict=True))
    print(
        f"{args.shape}: {before:,.0f} -> {after:,.0f} tokens a CPU second, {statistics.median(ratios):.2f} x "
        f"({min(ratios):.2f} - {max(ratios):.2f}), wall {walls:.2f} x; losses at most {apart:.1e} apart"
    )


def stepping(root: Path) -> "subprocess.Popen[str]":
    """This script, with the package of a checkout, waiting for its turns."""
    arguments = list(sys.argv[1:])
    at = next(i for i, argument in enumerate(arguments) if argument.startswith("--before"))
    del arguments[at : at + (1 if "=" in arguments[at] else 2)]
    return subprocess.Popen(
        [sys.executable, __file__, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(root)},
    )


def asked(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """What the next step took."""
    if process.stdin is None or process.stdout is None:
        raise AssertionError
    process.stdin.write("\n")
    process.stdin.flush()
    told: dict[str, Any] = json.loads(process.stdout.readline())
    return told


def take_steps(args: argparse.Namespace) -> None:
    """Take a step for every line that comes, and tell what it took."""
    import torch

    from tinystory.config import ModelConfig
    from tinystory.data import BatchPlan
    from tinystory.distributed import Ranks
    from tinystory.model import Transformer
    from tinystory.presets import load_tokenizer
    from tinystory.shards import tokenize
    from tinystory.sources import read_stories
    from tinystory.training import TrainConfig, backward, make_optimizers, optimizer_step

    tokenizer = load_tokenizer("default")
    stories = tokenize(list(islice(read_stories(args.data), N_STORIES)), tokenizer)
    layers, width, heads, inner = map(int, args.shape.split("x"))
    hyper = TrainConfig(
        rows=args.rows, micro_rows=args.rows, lr=2e-3, muon_lr=2e-3, seed=SEED, bf16=args.bf16, compile=args.compile
    )
    model = Transformer(ModelConfig.llama(tokenizer.vocab_size, layers, heads, width, 512, inner))
    model.init_weights(SEED)
    optimizers = make_optimizers(model, hyper)
    forward: Any = torch.compile(model) if args.compile else model
    plan, alone = BatchPlan(stories, 512, args.rows, seed=SEED), Ranks(0, 1, torch.device("cpu"))
    for _, (_, _, rows) in zip(sys.stdin, plan.ahead(), strict=False):
        clock, n_tokens = Clock(), plan.count(rows)
        loss = float(backward(forward, [plan.collate(rows)], n_tokens, hyper, alone))
        optimizer_step(model, optimizers, 0.1, hyper)
        cpu, wall = clock.read()
        print(json.dumps({"wall": wall, "cpu": cpu, "tokens": n_tokens, "loss": loss}), flush=True)


if __name__ == "__main__":
    main()
