"""Many stories to write, put into batches of prompts of like length: little is computed for padding."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from tinystory.model.config import ModelConfig
from tinystory.text.tokenizer import Tokenizer

__all__ = ["PromptStory", "prompt_batches", "rows_that_fit"]

_MOST_ROWS = 32
"""Stories of one batch: the fastest number measured on a CPU."""
_CACHE_BYTES = 2**31
_SORTED_BATCHES = 64
"""So many batches are sorted at a time: what is held does not grow with the file."""


@dataclass(frozen=True, slots=True)
class PromptStory:
    """One story among those of a file of prompts.

    Attributes:
        index: of the prompt, from 0.
        number: among the siblings of the prompt, from 0.
        prompt: the text.
        prompt_ids: its tokens, BOS included; filled in by `prompt_batches`.
    """

    index: int
    number: int
    prompt: str
    prompt_ids: tuple[int, ...] = ()


def prompt_batches(places: Iterable[PromptStory], tokenizer: Tokenizer, rows: int) -> Iterator[list[PromptStory]]:
    """Tokenise prompts and put those of like length together, the longest of each stretch first.

    Args:
        places: any number; they are taken a stretch at a time.
        tokenizer: the model's.
        rows: of a batch, at most.

    Yields:
        Batches of 1 to `rows` stories. `prompt_ids` is empty where a prompt has no token.
    """
    places = iter(places)
    while stretch := list(islice(places, _SORTED_BATCHES * rows)):
        texts = list(dict.fromkeys(place.prompt for place in stretch))
        ids = dict(zip(texts, tokenizer.encode_batch(texts), strict=True))
        bos = () if tokenizer.bos_id is None else (tokenizer.bos_id,)
        known = [PromptStory(one.index, one.number, one.prompt, (*bos, *ids[one.prompt])) for one in stretch]
        known.sort(key=lambda place: len(place.prompt_ids), reverse=True)
        yield from (known[start : start + rows] for start in range(0, len(known), rows))


def rows_that_fit(config: ModelConfig | None) -> int:
    """How many rows of a model make a good batch: 32, fewer where their keys and values in float32 exceed 2 GiB."""
    if config is None:
        return _MOST_ROWS
    bytes_per_row = 4 * 2 * config.n_layer * config.n_kv_head * config.d_head * config.max_seq_len
    return max(1, min(_MOST_ROWS, _CACHE_BYTES // bytes_per_row))
