"""What every processor and sampler costs a token, beside a sort of the logits: none should cost as much without need.

A call is the stage's own and the `observe` after it, on (V,) float32 logits like a small model's, in the middle of a
story. Stages that ask a person, or want more than their example gives, are left out with one line.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from bench.pairs import Measurement, Subject, TimedRun, run_pairs, timed
from bench.shapes import widened
from tinystory.errors import TinystoryError

if TYPE_CHECKING:
    from torch import Tensor

    from tinystory.decoding import LogitsProcessor, Sampler, Stage
    from tinystory.decoding.request import Vocabulary

__all__ = ["example_of", "measure_stages"]

VOCABULARIES = (2048, 50257)
SECONDS = 0.02
"""One measurement repeats a call until it takes about so long."""

STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day she saw a "
    "big dog. The dog was sad, and Lily gave the dog a ball."
)
SEED = 7


def measure_stages(subject: Subject) -> list[Measurement]:
    """CPU microseconds per call."""
    import torch

    from tinystory.decoding.plugins import discover

    torch.set_num_threads(subject.args.threads)
    registry = discover()
    found: list[Measurement] = []
    with torch.inference_mode():
        for vocab_size in VOCABULARIES:
            logits = 3 * torch.randn(vocab_size, generator=torch.Generator().manual_seed(SEED))
            vocabulary = words(subject, vocab_size)
            sort = repeated(partial(torch.sort, logits))
            for _, cls, source in registry.classes():
                if cls.kind == "search" or source != "tinystory":
                    continue
                for kind, own in inputs(cls, logits).items():
                    try:
                        spec, stage = example_of(cls)
                        call = repeated(caller(stage, own, vocabulary))
                    except (TinystoryError, TypeError, ValueError) as error:
                        subject.notes.append(f"{cls.name} is left out: {' '.join(str(error).split())[:160]}")
                        continue
                    what = f"{spec}, V = {vocab_size}{kind}"
                    measurement = Measurement("stages", what, "CPU µs", per_call, peer="a sort of the logits")
                    run_pairs(what, subject.args.pairs, [measurement], call, sort)
                    found.append(measurement)
    return found


def inputs(cls: "type[Stage]", logits: "Tensor") -> dict[str, Any]:
    """What the stage is called with, by a word for the table: a tensor, and an array where it takes one."""
    from tinystory.session.numpy_session import Logits

    return {"": logits} | ({", array": logits.numpy().view(Logits)} if cls.takes_arrays else {})


def example_of(cls: "type[Stage]") -> "tuple[str, LogitsProcessor | Sampler]":
    """A stage as its example has it, or with its defaults, and how it is written.

    Raises:
        UsageError: it needs an option that no example gives.
    """
    from tinystory.decoding.plugins import discover
    from tinystory.decoding.spec import format_spec, parse_spec

    decoder = parse_spec(cls.example or cls.name, discover())
    stage: Any = next(stage for stage in decoder.stages if isinstance(stage, cls))
    return format_spec(decoder).removesuffix(" | sample"), stage


def caller(stage: "LogitsProcessor | Sampler", logits: "Tensor", vocabulary: "Vocabulary") -> Callable[[], object]:
    """One call with the `observe` after it, the state being the same each time."""
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


def words(subject: Subject, vocab_size: int) -> "Vocabulary":
    """The model's own vocabulary, with words that no text has where it is smaller."""
    from tokenizers import Tokenizer as FastTokenizer

    from tinystory.text.tokenizer import Tokenizer

    content = (subject.directory / "tokenizer.json").read_text(encoding="utf-8")
    return Tokenizer(FastTokenizer.from_str(widened(content, vocab_size)), 0, frozenset({0}))


def repeated(call: Callable[[], object]) -> Callable[[], TimedRun]:
    """A run of as many calls as take about `SECONDS`; its n_tokens is their number."""
    started = time.perf_counter()
    call()
    n = max(1, int(SECONDS / max(time.perf_counter() - started, 1e-6)))

    def calls() -> list[int]:
        for _ in range(n):
            call()
        return [0] * n

    return partial(timed, calls)


def per_call(run: TimedRun) -> float:
    """CPU microseconds."""
    return run.cpu / run.n_tokens * 1e6
