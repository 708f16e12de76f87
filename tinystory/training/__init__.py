"""Train a model: the configuration, the steps, the folder and the plots of a run. Knows no chat.

`from tinystory.training import fit` is the door for a notebook or a script. Importing this package loads nothing heavy.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinystory.training.loop import FinishedRun, StepRecord, fit

__all__ = ["FinishedRun", "StepRecord", "fit"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'tinystory.training' has no attribute {name!r}")
    from tinystory.training import loop

    return getattr(loop, name)
