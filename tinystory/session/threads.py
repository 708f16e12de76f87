"""How many threads write fastest: known for small models, else measured once on this computer and remembered."""

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
"""Below, handing the tiny products to a second thread costs more than it gives (docs/performance.md)."""

_STEPS = 5
_GAIN = 0.9
"""More threads are taken only where they need at most this share of the time: they are others' threads, too."""


def choose_threads(session: Session, n_parameters: int, dtype: str) -> int:
    """Set torch's threads for a model on the CPU; `OMP_NUM_THREADS` stays what the user has set.

    Torch keeps a number for each thread of Python that has computed: who writes in another one sets it there again.

    Args:
        session: of the model; a twin of it is tried, a few tokens for each number of threads.
        n_parameters: of the model.
        dtype: that it computes in.

    Returns:
        The number of threads.
    """
    import torch

    most = _most()
    n_threads = most if "OMP_NUM_THREADS" in os.environ else _fitting(session, n_parameters, dtype, most)
    torch.set_num_threads(n_threads)
    return n_threads


@cache
def _most() -> int:
    """Torch's own number, as it was before the first model changed it."""
    import torch

    return torch.get_num_threads()


def _fitting(session: Session, n_parameters: int, dtype: str, most: int) -> int:
    """One for a small model, else what was measured, now or earlier."""
    import torch

    if most == 1 or n_parameters < _ONE_THREAD_PARAMETERS:
        return 1
    shape = f"{type(session).__name__}, {n_parameters} parameters, {session.vocab_size} tokens"
    key = f"{shape}, {dtype}, {most} threads, torch {torch.__version__}"
    known = _remembered().get(key)
    if type(known) is not int or not 1 <= known <= most:
        candidates = [1 << n for n in range(most.bit_length()) if 1 << n < most] + [most]
        known = fastest(session.open(), candidates)
        _remember(key, known)
    return known


def fastest(session: Session, candidates: Sequence[int], clock: Callable[[], float] = time.perf_counter) -> int:
    """The smallest number of threads that nothing beats by much; torch is left with the last one tried.

    Args:
        session: empty; it writes a few tokens.
        candidates: numbers of threads, rising.
        clock: seconds.
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
        took = median(seconds[1:])  # the first one warms up
        if took < _GAIN * least:
            best, least = n_threads, took
    return best


def _remembered() -> dict[str, object]:
    """What was measured before; nothing where there is no file that can be read."""
    try:
        return dict(read_json_object(threads_file()))
    except (TinystoryError, OSError, RuntimeError):  # the last: no home directory
        return {}


def _remember(key: str, n_threads: int) -> None:
    """Keep a measurement; where nothing can be written, the next start measures again."""
    with contextlib.suppress(OSError, RuntimeError):
        path = threads_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(_remembered() | {key: n_threads}, indent=1).encode())
