"""Try readers of files with many seeded cases: `python -m tests.fuzz --cases N [--first N] [--seed N] [TARGET ...]`."""

import argparse
import faulthandler
import sys
import time
from pathlib import Path

from .harness import run
from .targets import TARGETS

STUCK_SECONDS = 60


def main():
    """Run the targets; return 1 if a case failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"one of {', '.join(TARGETS)}; default: all")
    parser.add_argument("--cases", type=int, default=1_000, metavar="N")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="the number of the first case")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"), metavar="DIR", help="for failing cases")
    args = parser.parse_args()
    if unknown := [name for name in args.targets if name not in TARGETS]:
        parser.error(f"{', '.join(unknown)} is not one of {', '.join(TARGETS)}")
    return max([_run(TARGETS[name], args) for name in args.targets or TARGETS])


def _run(target, args):
    keep = args.keep / target.name
    keep.mkdir(parents=True, exist_ok=True)
    start = time.time()

    def progress(result):
        faulthandler.dump_traceback_later(STUCK_SECONDS, exit=True)
        n = result.n_read + result.n_refused
        if n % 1000 == 0:
            print(f"{target.name}: {n} cases, {len(result.failures)} failures, {time.time() - start:.0f} s", flush=True)

    numbers = range(args.first, args.first + args.cases)
    result = run(target, ((str(n), target.case(n, args.seed)) for n in numbers), keep, progress)
    faulthandler.cancel_dump_traceback_later()
    print(
        f"{target.name}: {result.n_read} read, {result.n_refused} refused, {len(result.failures)} failed; "
        f"at most {result.slowest[0]:.2f} s (case {result.slowest[1]}) and {result.largest[0]:.0f} MB "
        f"(case {result.largest[1]}); {time.time() - start:.0f} s in all"
    )
    for name, reason in result.failures:
        print(f"  {keep / name}: {reason}")
    return bool(result.failures)


sys.exit(main())
