"""`tinystory config`: every setting, its value and where that comes from."""

import argparse
import dataclasses
import json
import sys

from tinystory.folders import config_file
from tinystory.safe.showing import visible

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    """Print the settings as a table, or as JSON."""
    path = config_file()
    if args.json:
        settings = [dataclasses.asdict(setting) for setting in args.settings]
        sys.stdout.write(json.dumps({"file": str(path), "exists": path.exists(), "settings": settings}) + "\n")
        return 0
    rows = [("setting", "value", "from"), *((one.name, one.shown, one.origin) for one in args.settings)]
    names, values = (max(len(visible(row[column])) for row in rows) for column in (0, 1))
    for name, value, origin in rows:
        sys.stdout.write(f"{name:<{names}}  {visible(value):<{values}}  {visible(origin)}\n")
    missing = "" if path.exists() else " (not there yet)"
    sys.stdout.write(f"\nconfiguration file: {visible(str(path))}{missing}\n")
    return 0
