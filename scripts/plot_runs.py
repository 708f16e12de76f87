"""Draw the validation losses of several runs in one plot.

python scripts/plot_runs.py runs/a runs/b --out losses.png
"""

import argparse
import sys
from pathlib import Path

from tinystory.errors import TinystoryError
from tinystory.training.plotting import plot_runs, read_metrics


def main() -> int:
    """Parse the command line, read the logs, and draw; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="the folder of a run; its name stands in the legend"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the plot to write, .png or .svg")
    args = parser.parse_args()
    if args.out.suffix not in (".png", ".svg"):
        parser.error("--out must end in .png or .svg")
    try:
        plot_runs({run.resolve().name: read_metrics(run / "metrics.jsonl") for run in args.runs}, args.out)
    except TinystoryError as error:
        print(f"plot_runs: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"plot_runs: {error.filename} cannot be read: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
