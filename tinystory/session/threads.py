"""Choose the number of threads for a model: one for small models, else the fastest, measured once and remembered."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Sequence
from functools import cache
from statistics import median

from tinystory.decoding import Session
from tinystory.errors import TinystoryError
from tinystory.folders import threads_file
from tinystory.safe.reading import read_json_object
from tinystory.safe.writing import write_atomically

__all__ = ["choose_threads"]

_ONE_THREAD_PARAMETERS = 30_000_000
"""Below this size, a second thread costs more time than it saves (docs/performance.md)."""

_STEPS = 5
_GAIN = 0.9
"""A larger number of threads must need at most this share of the time, since other programs need threads as well."""


def choose_threads(session: Session, n_parameters: int, dtype: str) -> int:
    """Set the number of torch's threads for a model on the CPU, and return it.

    If the user has set `OMP_NUM_THREADS`, that number is kept. Torch has a separate number for each thread of Python;
    a caller that writes in another thread of Python must set the number there again.

    Args:
        session: a session of the model. A second one writes a few tokens with each number of threads.
        n_parameters: the number of the model's weights.
        dtype: the dtype in which the model computes.
    """
    import torch

    most = _most()
    n_threads = most if "OMP_NUM_THREADS" in os.environ else _fitting(session, n_parameters, dtype, most)
    torch.set_num_threads(n_threads)
    return n_threads


@cache
def _most() -> int:
    """Return the number of threads that torch had before the first model changed it."""
    import torch

    return torch.get_num_threads()


def _fitting(session: Session, n_parameters: int, dtype: str, most: int) -> int:
    """Return 1 for a small model, else the number that was measured earlier or is measured now."""
    import torch

    if most == 1 or n_parameters < _ONE_THREAD_PARAMETERS:
        return 1
    shape = f"{type(session).__name__}, {n_parameters} parameters, {session.vocab_size} tokens"
    key = f"{shape}, {dtype}, {most} threads, torch {torch.__version__}"
    n_threads = _remembered().get(key)
    if type(n_threads) is not int or not 1 <= n_threads <= most:
        candidates = [1 << n for n in range(most.bit_length()) if 1 << n < most] + [most]
        n_threads = fastest(session.open(), candidates)
        _remember(key, n_threads)
    return n_threads


def fastest(session: Session, candidates: Sequence[int], clock: Callable[[], float] = time.perf_counter) -> int:
    """Return the smallest number of threads that no larger number beats by a tenth. Torch keeps the last one tried.

    Args:
        session: an empty session; it writes a few tokens.
        candidates: numbers of threads, rising.
        clock: returns the time in seconds.
    """
    import torch

    best, least = candidates[0], float("inf")
    for n_threads in candidates:
        torch.set_num_threads(n_threads)
        session.prefill([[0]])
        seconds = []
        for _ in range(_STEPS):
            started = clock()
            session.decode([0])
            seconds.append(clock() - started)
        took = median(seconds[1:])  # the first step warms up
        if took < _GAIN * least:
            best, least = n_threads, took
    return best


def _remembered() -> dict[str, object]:
    """Return the numbers measured earlier, by key; empty if there is no file or it cannot be read."""
    try:
        return dict(read_json_object(threads_file()))
    except TinystoryError:
        return {}


def _remember(key: str, n_threads: int) -> None:
    """Write a measurement into the cache folder; if that fails, the next start measures again."""
    with contextlib.suppress(OSError):
        path = threads_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(_remembered() | {key: n_threads}, indent=1).encode())
