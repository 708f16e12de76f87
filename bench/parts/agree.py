"""Whether every fast path writes the greedy story of the plain float32 model, token by token.

The plain model is `model.Transformer`: a whole story at once, without a cache. One pass over a story tells whether each
of its tokens is the likeliest after those before it, so whether the plain model would have written it.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from bench.pairs import Measurement, Subject, TimedRun, run_pairs
from bench.variants import VARIANTS, open_ours, variants_of

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
    """Stories of each path that are the plain model's, beside all of them; in int8 the tokens before they part, too."""
    plain = plain_choices(subject)
    found: list[Measurement] = []
    for name, loaded in opened(subject):
        for how, together in (("one by one", False), (f"{len(PROMPTS)} rows", True)):
            stories = written(loaded, subject.args.tokens, together)
            agreeing = [in_agreement(plain(prompt_ids, ids), ids) for prompt_ids, ids in stories]
            whole = sum(n == len(ids) for n, (_, ids) in zip(agreeing, stories, strict=True))
            tokens = sum(len(ids) for _, ids in stories)
            aim = None if name.startswith("int8") else 1.0
            found += [
                counted(f"greedy, {name}, {how}", "stories", whole, len(stories), aim),
                counted(f"greedy, {name}, {how}", "tokens before a story parts", sum(agreeing), tokens, None),
            ]
    return found


def opened(subject: Subject) -> "Iterator[tuple[str, LoadedModel]]":
    """Every variant, and those that are there without torch."""
    from tinystory.checkpoint.shipped import find_model
    from tinystory.session.loading import load_without_torch
    from tinystory.session.steps.numpy_step import pays

    for name in variants_of(subject):
        yield name, open_ours(subject, name)
        variant = VARIANTS[name]
        if variant.dtype == "float32" and pays(subject.config):
            loaded = load_without_torch(*find_model(str(subject.directory)), compiled=variant.compiled)
            loaded.session.eos_ids = frozenset()
            yield f"{name} without torch", loaded


def counted(what: str, unit: str, ours: int, of: int, aim: float | None) -> Measurement:
    """A count beside the number there is; it is no matter of time, and one pair is all there is."""
    measurement = Measurement(
        "agree", what, unit, lambda run: run.n_tokens, True, "plain float32", aim, lambda run: run.n_tokens
    )
    run_pairs(
        what, 1, [measurement], lambda: TimedRun([], 0, 0, n_tokens=ours), lambda: TimedRun([], 0, 0, n_tokens=of)
    )
    return measurement


def in_agreement(choices: Sequence[int], token_ids: Sequence[int]) -> int:
    """How many tokens are the plain model's own, up to the first that is not."""
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(choices, token_ids, strict=True))))


def plain_choices(subject: Subject) -> Callable[[Sequence[int], Sequence[int]], list[int]]:
    """What the plain model takes for the likeliest before each token of a story, given those before."""
    import torch

    from tinystory.checkpoint import load_model, read_header

    model = load_model(read_header(subject.directory)).eval()

    @torch.inference_mode()
    def choices(prompt_ids: Sequence[int], token_ids: Sequence[int]) -> list[int]:
        logits = model(torch.tensor([[*prompt_ids, *token_ids[:-1]]]))[0, len(prompt_ids) - 1 :]
        found: list[int] = logits.argmax(dim=-1).tolist()
        return found

    return choices


def written(loaded: "LoadedModel", n_tokens: int, together: bool) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The greedy stories of all prompts, as ids of prompt and story."""
    from tinystory.decoding.plugins import discover
    from tinystory.decoding.spec import parse_spec
    from tinystory.writing.generate import Ended, StoryRequest, write

    decoder = parse_spec("greedy", discover())
    requests = [StoryRequest(prompt, decoder, seed=0, max_new_tokens=n_tokens) for prompt in PROMPTS]
    found = {}
    for batch in [requests] if together else [[request] for request in requests]:
        for event in write(loaded.session.open(), loaded.tokenizer, batch):
            if isinstance(event, Ended):
                found[event.result.request.prompt] = (event.result.prompt_ids, event.result.token_ids)
    return [found[prompt] for prompt in PROMPTS]
