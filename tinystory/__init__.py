"""tinystory: a terminal story studio for small language models. Importing it loads nothing heavy.

Examples:
    >>> import tinystory as ts
    >>> model = ts.load("mini")
    >>> story = model.write("Once upon a time", "top-k 40 | sample 0.8", seed=7, max_new_tokens=20)
    >>> story.text.startswith("Once upon a time")
    True
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_PLACES = {
    "Comparison": "tinystory.api.comparison",
    "Inside": "tinystory.api.inside",
    "Model": "tinystory.api.model",
    "Piece": "tinystory.api.model",
    "Replay": "tinystory.api.replay",
    "Story": "tinystory.api.story",
    "StoryToken": "tinystory.api.story",
    "Trace": "tinystory.api.trace",
    "WhatIf": "tinystory.api.trace",
    "compare": "tinystory.api.comparison",
    "load": "tinystory.api.model",
    "replay": "tinystory.api.replay",
}
"""The names that scripts and notebooks use. Each is imported when it is used for the first time."""

__all__ = ["__version__", *_PLACES]  # the stub has the names for type checkers


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'tinystory' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
