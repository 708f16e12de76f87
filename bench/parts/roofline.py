"""The part `roofline`: how close decoding comes to the speed of memory.

Each token has to read all weights, and the keys and values so far. The limit is the speed of a copy between two NumPy
buffers on one thread; read and written bytes count. It is measured twice: with buffers that together have the size of
the weights (if they fit into the cache of the processor, this is the speed of the cache), and with buffers that fit
into no cache.
"""

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.ours import VARIANTS, labelled, open_ours, our_writer, prompt_of, variants_of
from bench.pairs import Clock, Measurement, TimedRun, run_pairs, timed
from bench.subject import Subject
from tinystory.model.config import ModelConfig

__all__ = ["bytes_per_token", "cache_bytes", "measure_roofline"]

WIDTHS = {"float32": 4.0, "int8": 1.0}
"""Bytes per weight of a block, by dtype. The head and the KV cache are float32 in both."""

AIMS = {"int8": 0.5}
SPEC = "greedy"
SECONDS = 0.2
"""A copy is repeated until this time has passed."""

L3 = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")


def bytes_per_token(config: ModelConfig, start: int, n_tokens: int, dtype: str = "float32") -> float:
    """Return the mean number of bytes that a token of a story has to read.

    Args:
        config: the shape of the model.
        start: the number of positions before that of the first token.
        n_tokens: the number of new tokens of the story.
        dtype: one of `WIDTHS`.
    """
    looked_up = 0 if config.tied_head else config.vocab_size  # rows of tables; a token reads one row
    looked_up += config.max_seq_len if config.family == "gpt2" else 0
    head = config.vocab_size * config.d_model
    in_blocks = config.n_parameters - looked_up * config.d_model - head
    positions = start + (n_tokens + 1) / 2  # seen by a token, on average, with its own
    return in_blocks * WIDTHS[dtype] + 4 * (head + positions * 2 * config.n_layer * config.n_kv_head * config.d_head)


def cache_bytes(path: Path = L3) -> int:
    """Return the bytes of the last cache of the processor, or 32 MiB if the system does not tell."""
    try:
        text = path.read_text(encoding="ascii").strip()
        return int(text[:-1]) * {"K": 2**10, "M": 2**20}[text[-1]]
    except (OSError, ValueError, KeyError, IndexError):
        return 32 * 2**20


def measure_roofline(subject: Subject) -> list[Measurement]:
    """Measure the bytes per second of decoding beside those of a copy. The ratio is the share of the limit."""
    measurements: list[Measurement] = []
    n_tokens, n_pairs = subject.settings.tokens, subject.settings.pairs
    for variant in variants_of(subject):
        loaded, dtype = open_ours(subject, variant), VARIANTS[variant].dtype
        ours = our_writer(loaded, SPEC, n_tokens)
        ours()
        # The last token of the prompt gives the first new token. The last token of the story is not read.
        per_token = bytes_per_token(subject.config, len(prompt_of(loaded)) - 1, n_tokens, dtype)
        weights = subject.config.n_parameters * WIDTHS[dtype]
        roofs = {"weights' size": weights, "beyond the cache": max(weights, 4 * cache_bytes())}
        for name, size in roofs.items():
            buffers = np.ones(int(size / 8), np.float32), np.zeros(int(size / 8), np.float32)
            copy_for(SECONDS, *buffers)
            what = f"{labelled(SPEC, variant)}, {per_token / 1e6:.2f} MB a token"
            measurement = Measurement(
                "roofline", what, "GB / CPU s", partial(decoding_speed, per_token), True, f"copy, {name}",
                AIMS.get(dtype), copying_speed,
            )  # fmt: skip
            copy = partial(copy_for, SECONDS, *buffers)
            run_pairs(f"roofline, {name}", n_pairs, [measurement], partial(timed, ours), copy)
            measurements.append(measurement)
    return measurements


def decoding_speed(per_token: float, run: TimedRun) -> float:
    """Return the GB that decoding reads in a CPU second."""
    return run.n_tokens * per_token / run.cpu / 1e9


def copying_speed(run: TimedRun) -> float:
    """Return the GB that a copy moves in a CPU second."""
    return run.n_bytes / run.cpu / 1e9


def copy_for(seconds: float, source: NDArray[np.float32], target: NDArray[np.float32]) -> TimedRun:
    """Copy until the time has passed. A copied byte counts twice: it is read and written."""
    clock, n = Clock(), 0
    while True:
        np.copyto(target, source)
        n += 1
        cpu, wall = clock.read()
        if wall >= seconds:
            return TimedRun([], cpu, wall, n_bytes=2.0 * source.nbytes * n)
