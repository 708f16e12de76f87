"""Read docstrings that are shown to users, also where Python was told to forget them (`python -OO`)."""

import ast
import inspect
import sys
import textwrap
from typing import Any

__all__ = ["docstring"]

_FORGOTTEN = sys.flags.optimize >= 2


def docstring(thing: Any) -> str:
    """Return the docstring of a class or a function, without its indentation; empty if it has none."""
    if not _FORGOTTEN:
        return inspect.getdoc(thing) or ""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(thing)))
        definition: Any = tree.body[0]
        return ast.get_docstring(definition) or ""
    except (OSError, TypeError, ValueError, SyntaxError, IndexError):  # there is no source to read
        return ""
