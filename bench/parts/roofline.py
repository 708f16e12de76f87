"""How near decoding comes to the speed of memory: each token has to read all weights, and keys and values so far.

The roof is what a copy between two NumPy buffers moves a second, read and written bytes counted, on one thread:
once with buffers that together are as large as the weights (where those fit into the processor's cache, this is the
cache's speed), once with buffers that fit into no cache.
"""

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.pairs import Clock, Measurement, Subject, TimedRun, run_pairs, timed
from bench.parts.decode import our_writer
from bench.variants import VARIANTS, labelled, open_ours, prompt_of, variants_of
from tinystory.model.config import ModelConfig

__all__ = ["bytes_per_token", "cache_bytes", "measure_roofline"]

WIDTHS = {"float32": 4.0, "int8": 1.0}
"""Bytes of a block's weight; the head and the cache are float32 in both."""

AIMS = {"int8": 0.5}
SPEC = "greedy"
SECONDS = 0.2
"""A copy is repeated until it has taken about so long."""

L3 = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")


def bytes_per_token(config: ModelConfig, start: int, n_tokens: int, dtype: str = "float32") -> float:
    """What the mean token of a story has to read, in bytes.

    Args:
        config: the model.
        start: positions before the first token's own.
        n_tokens: of the story.
        dtype: one of `WIDTHS`.
    """
    looked_up = 0 if config.tied_head else config.vocab_size  # rows of tables of which a token reads one
    looked_up += config.max_seq_len if config.family == "gpt2" else 0
    head = config.vocab_size * config.d_model
    in_blocks = config.n_parameters - looked_up * config.d_model - head
    positions = start + (n_tokens + 1) / 2  # in sight of the mean token, its own included
    return in_blocks * WIDTHS[dtype] + 4 * (head + positions * 2 * config.n_layer * config.n_kv_head * config.d_head)


def cache_bytes(path: Path = L3) -> int:
    """The size of the last cache; 32 MiB where the system does not tell."""
    try:
        text = path.read_text(encoding="ascii").strip()
        return int(text[:-1]) * {"K": 2**10, "M": 2**20}[text[-1]]
    except (OSError, ValueError, KeyError, IndexError):
        return 32 * 2**20


def measure_roofline(subject: Subject) -> list[Measurement]:
    """Bytes a second of decoding beside those of a copy; the ratio is the share of the roof that is reached."""
    found: list[Measurement] = []
    n_tokens = subject.args.tokens
    for variant in variants_of(subject):
        loaded, dtype = open_ours(subject, variant), VARIANTS[variant].dtype
        ours = our_writer(loaded, SPEC, n_tokens)
        ours()
        # The prompt's last token gives the first new one, and the story's last token is not read any more.
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
            run_pairs(
                f"roofline, {name}",
                subject.args.pairs,
                [measurement],
                partial(timed, ours),
                partial(copy_for, SECONDS, *buffers),
            )
            found.append(measurement)
    return found


def decoding_speed(per_token: float, run: TimedRun) -> float:
    """GB a CPU second."""
    return run.n_tokens * per_token / run.cpu / 1e9


def copying_speed(run: TimedRun) -> float:
    """GB a CPU second."""
    return run.n_bytes / run.cpu / 1e9


def copy_for(seconds: float, source: NDArray[np.float32], target: NDArray[np.float32]) -> TimedRun:
    """Copy again and again; two bytes moved for each copied."""
    clock, n = Clock(), 0
    while True:
        np.copyto(target, source)
        n += 1
        cpu, wall = clock.read()
        if wall >= seconds:
            return TimedRun([], cpu, wall, n_bytes=2.0 * source.nbytes * n)
