"""Find the compiled functions of `step.c` that were built when tinystory was installed.

One library has them once for each level of processors; `level.c` names the best level of this one. Without a C compiler
tinystory is installed without the library, and models then compute in NumPy or torch.
"""

import ctypes
import functools
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

__all__ = ["LEVELS", "CompiledCode", "compiled_code", "why_missing"]

LEVELS = ("plain", "avx2", "avx512")
"""The levels of processors, each a superset of the one before."""

_NAME = "_step"


@dataclass(frozen=True)
class CompiledCode:
    """The functions of `step.c` for one level of processors; their parameters are described there.

    Attributes:
        level: one of `LEVELS`.
    """

    level: str
    panel_rows: Callable[..., Any]
    pack: Callable[..., Any]
    scratch: Callable[..., Any]
    hidden: Callable[..., Any]
    logits: Callable[..., Any]


@functools.cache
def compiled_code(level: str | None = None) -> CompiledCode | None:
    """Return the functions for a level, or for the best level of this processor; None if there are none.

    Args:
        level: one of `LEVELS`; this processor must have it.
    """
    library, _ = _library()
    if library is None:
        return None
    name = level or library.step_level().decode()
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    functions = {}
    for function, result, *arguments in (
        ("panel_rows", integer),
        ("pack", None, pointer, integer, integer, integer, pointer),
        ("scratch", integer, pointer, integer, integer),
        ("hidden", None, pointer, pointer, integer, pointer, pointer, pointer, pointer, pointer),
        ("logits", None, pointer, integer, pointer, pointer, pointer),
    ):
        found = getattr(library, f"step_{function}_{name}", None)
        if found is None:
            return None
        found.restype, found.argtypes = result, arguments
        functions[function] = found
    return CompiledCode(name, **functions)


def why_missing() -> str:
    """Return in one line why there is no compiled code; empty if there is."""
    return _library()[1]


@functools.cache
def _library() -> tuple[ctypes.CDLL | None, str]:
    """Return the library, or None and the reason why it cannot be used."""
    paths = [path for suffix in EXTENSION_SUFFIXES if (path := Path(__file__).with_name(_NAME + suffix)).is_file()]
    if not paths:
        return None, "it was not built: install a C compiler (gcc or clang), and install tinystory again"
    try:
        library = ctypes.CDLL(str(paths[0]))
        library.step_level.restype = ctypes.c_char_p
    except (OSError, AttributeError) as error:
        return None, f"it cannot be loaded: {error}"
    return library, ""
