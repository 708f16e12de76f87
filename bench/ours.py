"""Our side of the benchmark: a model in each variant of its computation, and the stories that it writes."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from bench.subject import Subject
from tinystory.errors import UsageError

if TYPE_CHECKING:
    from tinystory.decoding import Decoder
    from tinystory.session.loading import LoadedModel
    from tinystory.writing.generate import StoryRequest

__all__ = [
    "PROMPT", "SEED", "VARIANTS", "Variant", "decoders_of", "labelled", "open_ours", "our_writer", "prompt_of",
    "variants_of", "written",
]  # fmt: skip

PROMPT = "Once upon a time"
SEED = 7


class Variant(NamedTuple):
    """A way to load a model."""

    dtype: str = "float32"
    engine: str = "numpy"


VARIANTS = {
    "float32": Variant(),
    "int8": Variant("int8"),
    "compiled": Variant(engine="compiled"),
    "int8 compiled": Variant("int8", engine="compiled"),
}


def variants_of(subject: Subject) -> tuple[str, ...]:
    """Return the variants of the settings. Where there is no compiled code, leave out its variants, with a note."""
    from tinystory.session.steps.compiled_code import compiled_code, why_missing

    names = subject.settings.variants
    if compiled_code() is None:
        names = tuple(name for name in names if VARIANTS[name].engine == "numpy")
        subject.leave_out("compiled code", why_missing())
    return names


def labelled(spec: str, name: str) -> str:
    """Return the label of a spec in a variant. Plain float32 is not mentioned."""
    return spec if name == "float32" else f"{spec}, {name}"


def open_ours(subject: Subject, name: str = "float32") -> "LoadedModel":
    """Load our model in a variant. It never ends a story by itself.

    Raises:
        UsageError: prompt and story are longer than the context.
    """
    import torch

    from tinystory.session.loading import load

    n_tokens = subject.settings.tokens
    torch.set_num_threads(subject.settings.threads)
    variant = VARIANTS[name]
    loaded = load(str(subject.directory), variant.dtype, engine=variant.engine)
    if len(prompt_of(loaded)) + n_tokens > loaded.session.max_seq_len:
        limit = loaded.session.max_seq_len
        raise UsageError(f"--tokens is {n_tokens}; prompt and story may have {limit} tokens together")
    loaded.session.eos_ids = frozenset()
    return loaded


def prompt_of(loaded: "LoadedModel") -> tuple[int, ...]:
    """Return the token ids of the prompt."""
    return tuple(loaded.tokenizer.encode(PROMPT))


def decoders_of(specs: Iterable[str]) -> "list[Decoder]":
    """Return the decoders of some specs."""
    from tinystory.decoding.plugins import discover
    from tinystory.decoding.spec import parse_spec

    registry = discover()
    return [parse_spec(spec, registry) for spec in specs]


def written(
    loaded: "LoadedModel", decoders: "Sequence[Decoder]", n_tokens: int, prompts: Sequence[str] = (PROMPT,)
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Write a story for each decoder and prompt, all in one batch from an empty cache.

    Args:
        loaded: our model.
        decoders: the story of each has the noise of branch 0.
        n_tokens: the number of new tokens of each story.
        prompts: every decoder writes from each of them.

    Returns:
        For each story the token ids of the prompt and those of the new text.
    """
    from tinystory.writing.generate import StoryRequest

    requests = [
        StoryRequest(prompt, decoder, seed=SEED, max_new_tokens=n_tokens) for decoder in decoders for prompt in prompts
    ]
    return _ids(loaded, requests)


def our_writer(loaded: "LoadedModel", spec: str, n_tokens: int, n_rows: int = 1) -> Callable[[], list[int]]:
    """Return a function that writes branches of one prompt in one batch, from an empty cache.

    The function returns the token ids of all branches, joined.
    """
    from tinystory.writing.generate import StoryRequest

    [decoder] = decoders_of([spec])
    requests = [
        StoryRequest(PROMPT, decoder, seed=SEED, max_new_tokens=n_tokens, number=number) for number in range(n_rows)
    ]
    return lambda: [token_id for _, ids in _ids(loaded, requests) for token_id in ids]


def _ids(loaded: "LoadedModel", requests: "list[StoryRequest]") -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    from tinystory.writing.generate import Ended, write

    events = write(loaded.session.open(), loaded.tokenizer, requests)
    stories = {event.story: event.result for event in events if isinstance(event, Ended)}
    return [(stories[number].prompt_ids, stories[number].token_ids) for number in sorted(stories)]
