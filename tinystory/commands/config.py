"""`tinystory config`: every setting, its value and where it comes from."""

import dataclasses
import json
import sys
from dataclasses import dataclass

from tinystory.commands.shared.groups import Options
from tinystory.folders import config_file
from tinystory.safe.reading import is_absent
from tinystory.safe.showing import visible
from tinystory.settings import Setting

__all__ = ["ConfigOptions", "run"]


@dataclass(frozen=True, kw_only=True)
class ConfigOptions(Options):
    """The options of `tinystory config`.

    Attributes:
        json: print JSON.
        settings: every setting and where it comes from.
    """

    json: bool
    settings: tuple[Setting, ...]


def run(options: ConfigOptions) -> int:
    """Print the settings as a table, or as JSON."""
    path = config_file()
    if options.json:
        settings = [dataclasses.asdict(setting) for setting in options.settings]
        sys.stdout.write(json.dumps({"file": str(path), "exists": not is_absent(path), "settings": settings}) + "\n")
        return 0
    rows = [("setting", "value", "from"), *((s.name, s.shown, s.origin) for s in options.settings)]
    name_width, value_width = (max(len(visible(row[column])) for row in rows) for column in (0, 1))
    for name, value, origin in rows:
        sys.stdout.write(f"{name:<{name_width}}  {visible(value):<{value_width}}  {visible(origin)}\n")
    missing = " (not there yet)" if is_absent(path) else ""
    sys.stdout.write(f"\nconfiguration file: {visible(str(path))}{missing}\n")
    return 0
