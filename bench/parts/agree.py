"""The part `agree`: count the greedy stories of every variant that are the same as those of the plain model.

The plain model is `model.Transformer`, which computes a whole story at once without a cache. One pass over a story
gives the likeliest token at each place, and so the story that the plain model would have written.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from bench.ours import VARIANTS, decoders_of, open_ours, variants_of, written
from bench.pairs import Measurement, TimedRun
from bench.subject import Subject

if TYPE_CHECKING:
    from tinystory.session.loading import LoadedModel

__all__ = ["PROMPTS", "in_agreement", "measure_agreement"]

PROMPTS = (
    "Once upon a time", "One day,", "Lily and Tom", "The little dog", "There was a big tree", "Mia had a red ball.",
    "In the park,", "The sun was hot and", "Ben was sad because", "A bird sat on the roof.", "Mom said,", "The cat saw",
    "It was a rainy day.", "Sam wanted to", "The old man had a boat.", "Anna found a box.", "The fish",
    "Tim was not happy.", "At night, the moon", "Sara and her brother",
)  # fmt: skip


def measure_agreement(subject: Subject) -> list[Measurement]:
    """Count equal stories, and the tokens before the first difference, in every variant.

    int8 has no aim, because its rounding changes stories.
    """
    plain = _plain_choices(subject)
    [greedy] = decoders_of(["greedy"])
    n_tokens = subject.settings.tokens
    measurements: list[Measurement] = []
    for name, loaded in _opened(subject):
        for how, n_rows in (("one by one", 1), (f"{len(PROMPTS)} rows", len(PROMPTS))):
            batches = [PROMPTS[start : start + n_rows] for start in range(0, len(PROMPTS), n_rows)]
            stories = [story for batch in batches for story in written(loaded, [greedy], n_tokens, batch)]
            agreeing = [in_agreement(plain(prompt_ids, ids), ids) for prompt_ids, ids in stories]
            whole = sum(n == len(ids) for n, (_, ids) in zip(agreeing, stories, strict=True))
            tokens = sum(len(ids) for _, ids in stories)
            aim = None if name.startswith("int8") else 1.0
            what = f"greedy, {name}, {how}"
            measurements += [
                _counted(what, "stories", whole, len(stories), aim),
                _counted(what, "tokens before a story parts", sum(agreeing), tokens, None),
            ]
    return measurements


def _opened(subject: Subject) -> "Iterator[tuple[str, LoadedModel]]":
    """Yield the model in every variant, and once more without torch where that is possible."""
    from tinystory.checkpoint.shipped import find_model
    from tinystory.session.loading import load_without_torch
    from tinystory.session.steps.numpy_step import beats_torch

    for name in variants_of(subject):
        yield name, open_ours(subject, name)
        variant = VARIANTS[name]
        if variant.dtype == "float32" and beats_torch(subject.config):
            loaded = load_without_torch(*find_model(str(subject.directory)), engine=variant.engine)
            loaded.session.eos_ids = frozenset()
            yield f"{name} without torch", loaded


def _counted(what: str, unit: str, ours: int, n_all: int, aim: float | None) -> Measurement:
    """Return a count beside the number of all, as one pair. No time is measured."""
    measurement = Measurement(
        "agree", what, unit, lambda run: run.n_tokens, True, "plain float32", aim, lambda run: run.n_tokens
    )
    measurement.note(TimedRun([], 0, 0, n_tokens=ours), TimedRun([], 0, 0, n_tokens=n_all))
    return measurement


def in_agreement(choices: Sequence[int], token_ids: Sequence[int]) -> int:
    """Return how many tokens are equal to the choices of the plain model, up to the first difference."""
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(choices, token_ids, strict=True))))


def _plain_choices(subject: Subject) -> Callable[[Sequence[int], Sequence[int]], list[int]]:
    """Return a function that takes a prompt and a story, and gives the likeliest token at each place of the story."""
    import torch

    from tinystory.checkpoint import load_model, read_header

    model = load_model(read_header(subject.directory)).eval()

    @torch.inference_mode()
    def choices(prompt_ids: Sequence[int], token_ids: Sequence[int]) -> list[int]:
        logits = model(torch.tensor([[*prompt_ids, *token_ids[:-1]]]))[0, len(prompt_ids) - 1 :]
        likeliest: list[int] = logits.argmax(dim=-1).tolist()
        return likeliest

    return choices
