"""Put stories with prompts of similar length into one batch, so that little is computed for padding."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

from tinystory.model.config import ModelConfig
from tinystory.text.tokenizer import Tokenizer

__all__ = ["PlannedStory", "rows_that_fit", "story_batches"]

_MOST_ROWS = 32
"""The largest number of stories in a batch; more were not faster on a CPU."""
_CACHE_BYTES = 2**31
"""The largest memory for keys and values that `rows_that_fit` accepts."""
_SORTED_BATCHES = 64
"""The number of batches that are sorted together, so that memory does not grow with the file."""


@dataclass(frozen=True, slots=True)
class PlannedStory:
    """One story that is still to be written, from a prompt of a file.

    Attributes:
        index: the index of the prompt in its file, from 0.
        number: the number of the branch among the stories of this prompt, from 0.
        prompt: the text of the prompt.
        prompt_ids: the tokens of the prompt, BOS included; `story_batches` fills them in.
    """

    index: int
    number: int
    prompt: str
    prompt_ids: tuple[int, ...] = ()


def story_batches(stories: Iterable[PlannedStory], tokenizer: Tokenizer, rows: int) -> Iterator[list[PlannedStory]]:
    """Tokenise the prompts and put stories with prompts of similar length into one batch.

    Args:
        stories: any number of them. 64 batches are read and sorted at a time, the longest prompts first.
        tokenizer: the tokenizer of the model.
        rows: the largest number of stories in a batch.

    Yields:
        Batches of 1 to `rows` stories. `prompt_ids` is empty if a prompt has no token.
    """
    stories = iter(stories)
    while group := list(islice(stories, _SORTED_BATCHES * rows)):
        texts = list(dict.fromkeys(story.prompt for story in group))
        ids = dict(zip(texts, tokenizer.encode_batch(texts), strict=True))
        group = [replace(story, prompt_ids=tuple(tokenizer.as_prompt(ids[story.prompt]))) for story in group]
        group.sort(key=lambda story: len(story.prompt_ids), reverse=True)
        yield from (group[start : start + rows] for start in range(0, len(group), rows))


def rows_that_fit(config: ModelConfig | None) -> int:
    """Return a good number of rows for a batch: 32, or fewer if their keys and values need more than 2 GiB.

    Args:
        config: the shape of the model; None if only transformers knows it. Keys and values count as float32.
    """
    if config is None:
        return _MOST_ROWS
    bytes_per_row = 4 * 2 * config.n_layer * config.n_kv_head * config.d_head * config.max_seq_len
    return max(1, min(_MOST_ROWS, _CACHE_BYTES // bytes_per_row))
