"""Ours, in every way that it computes; which of them a part measures, `--variants` says."""

from typing import TYPE_CHECKING, NamedTuple

from bench.pairs import Subject
from tinystory.errors import UsageError

if TYPE_CHECKING:
    from tinystory.session.loading import LoadedModel

__all__ = ["PROMPT", "VARIANTS", "Variant", "labelled", "open_ours", "prompt_of", "variants_of"]

PROMPT = "Once upon a time"


class Variant(NamedTuple):
    """How a model is loaded."""

    dtype: str = "float32"
    compiled: bool = False


VARIANTS = {
    "float32": Variant(),
    "int8": Variant("int8"),
    "compiled": Variant("float32", compiled=True),
    "int8 compiled": Variant("int8", compiled=True),
}


def variants_of(subject: Subject) -> list[str]:
    """Those that are asked for; where nothing can be compiled, one line says so."""
    from tinystory.session.steps.compiling import compiled_code

    names: list[str] = subject.args.variants.split(",")
    if any(VARIANTS[name].compiled for name in names):
        try:
            compiled_code()  # now: building it is nobody's decoding
        except UsageError as error:
            names = [name for name in names if not VARIANTS[name].compiled]
            if (note := f"what is compiled is left out: {error}") not in subject.notes:
                subject.notes.append(note)
    return names


def labelled(spec: str, name: str) -> str:
    """What was done; plain float32 goes without saying."""
    return spec if name == "float32" else f"{spec}, {name}"


def open_ours(subject: Subject, name: str = "float32") -> "LoadedModel":
    """Our model, whose stories do not end by themselves.

    Raises:
        UsageError: prompt and story are longer than its context, or it cannot be compiled.
    """
    import torch

    from tinystory.session.loading import load

    torch.set_num_threads(subject.args.threads)
    variant = VARIANTS[name]
    loaded = load(str(subject.directory), variant.dtype, compiled=variant.compiled)
    if len(prompt_of(loaded)) + subject.args.tokens > loaded.session.max_seq_len:
        limit = loaded.session.max_seq_len
        raise UsageError(f"--tokens is {subject.args.tokens}; prompt and story may have {limit} tokens together")
    loaded.session.eos_ids = frozenset()
    return loaded


def prompt_of(loaded: "LoadedModel") -> tuple[int, ...]:
    """The prompt's ids."""
    return tuple(loaded.tokenizer.encode(PROMPT))
