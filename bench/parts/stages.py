"""The part `stages`: the time of every processor and sampler per token, compared with a sort of the logits.

A call is the call of the stage and the `observe` after it, in the middle of a story, on float32 logits (V,) like those
of a small model. A stage is left out with a note if it asks a person, or needs more than its example gives.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from bench.ours import SEED, decoders_of
from bench.pairs import Measurement, TimedRun, run_pairs, timed
from bench.shapes import widened
from bench.subject import Subject
from tinystory.errors import TinystoryError

if TYPE_CHECKING:
    from torch import Tensor

    from tinystory.decoding import LogitsProcessor, Sampler, Stage
    from tinystory.decoding.request import Vocabulary

__all__ = ["example_of", "measure_stages"]

VOCABULARIES = (2048, 50257)
SECONDS = 0.02
"""A call is repeated until the calls take about this time."""

STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day she saw a "
    "big dog. The dog was sad, and Lily gave the dog a ball."
)


def measure_stages(subject: Subject) -> list[Measurement]:
    """Measure the CPU microseconds of a call of every stage, on tensors and, where possible, on arrays."""
    import torch

    from tinystory.decoding.plugins import discover

    torch.set_num_threads(subject.settings.threads)
    registry = discover()
    measurements: list[Measurement] = []
    with torch.inference_mode():
        for vocab_size in VOCABULARIES:
            logits = 3 * torch.randn(vocab_size, generator=torch.Generator().manual_seed(SEED))
            vocabulary = _vocabulary(subject, vocab_size)
            sort = _repeated(partial(torch.sort, logits))
            for _, cls, source in registry.classes():
                if cls.kind == "search" or source != "tinystory":
                    continue
                for kind, stage_logits in _inputs(cls, logits).items():
                    try:
                        spec, stage = example_of(cls)
                        call = _repeated(_caller(stage, stage_logits, vocabulary))
                    except (TinystoryError, TypeError, ValueError) as error:
                        subject.leave_out(cls.name, error)
                        continue
                    what = f"{spec}, V = {vocab_size}{kind}"
                    measurement = Measurement("stages", what, "CPU µs", _per_call, peer="a sort of the logits")
                    run_pairs(what, subject.settings.pairs, [measurement], call, sort)
                    measurements.append(measurement)
    return measurements


def _inputs(cls: "type[Stage]", logits: "Tensor") -> dict[str, Any]:
    """Return logits (V,) as a tensor, and as an array if the stage takes arrays, by the text that the table adds."""
    from tinystory.session.numpy_session import Logits

    return {"": logits} | ({", array": logits.numpy().view(Logits)} if cls.takes_arrays else {})


def example_of(cls: "type[Stage]") -> "tuple[str, LogitsProcessor | Sampler]":
    """Return the spec of the example of a stage, or of its defaults, and the stage.

    Raises:
        UsageError: the stage needs an option that no example gives.
    """
    from tinystory.decoding.spec import format_spec

    [decoder] = decoders_of([cls.example or cls.name])
    stage: Any = next(stage for stage in decoder.stages if isinstance(stage, cls))
    return format_spec(decoder).removesuffix(" | sample"), stage


def _caller(stage: "LogitsProcessor | Sampler", logits: "Tensor", vocabulary: "Vocabulary") -> Callable[[], object]:
    """Return a function that calls the stage and its `observe`, with the same state each time."""
    from tinystory.decoding import Request, Step

    ids = tuple(vocabulary.encode(STORY))
    request = Request(ids[:10], 256, SEED, vocabulary=vocabulary)
    state = stage.start(request)
    for token_id in ids[10:]:
        state = stage.observe(state, token_id, logits)
    step = Step(request, ids, frozenset({0}), state)
    token_id = int(logits.argmax())

    def call() -> object:
        stage(logits, step)
        return stage.observe(state, token_id, logits)

    call()
    return call


def _vocabulary(subject: Subject, vocab_size: int) -> "Vocabulary":
    """Return the vocabulary of the model, filled up to vocab_size with words that no text has."""
    from tokenizers import Tokenizer as FastTokenizer

    from tinystory.text.tokenizer import Tokenizer

    content = (subject.directory / "tokenizer.json").read_text(encoding="utf-8")
    return Tokenizer(FastTokenizer.from_str(widened(content, vocab_size)), 0, frozenset({0}))


def _repeated(call: Callable[[], object]) -> Callable[[], TimedRun]:
    """Return a run of so many calls that they take about `SECONDS`. Its n_tokens is the number of calls."""
    started = time.perf_counter()
    call()
    n = max(1, int(SECONDS / max(time.perf_counter() - started, 1e-6)))

    def calls() -> list[int]:
        for _ in range(n):
            call()
        return [0] * n

    return partial(timed, calls)


def _per_call(run: TimedRun) -> float:
    """Return the CPU microseconds of a call."""
    return run.cpu / run.n_tokens * 1e6
