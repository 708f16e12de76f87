"""The real side of a study: pieces of real stories, cut as the decoders' own stories are cut.

A decoder goes on from a prompt for at most so many tokens. Its counterpart is a real story, divided after as many
words as the prompt has: what comes before is given, and what follows, up to as many tokens, is measured.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tinystory.errors import UsageError
from tinystory.text.tokenizer import Tokenizer

__all__ = ["FEWEST_GROUPS", "Excerpt", "real_groups"]

FEWEST_GROUPS = 3
"""So many are needed to tell how far groups of real stories are from each other."""

_MOST_GROUPS = 12
_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class Excerpt:
    """A piece of a real story.

    Attributes:
        prompt_ids: tokens before it, BOS included where the vocabulary has one.
        token_ids: its own.
        text: of those.
        finished: whether the story ends with it, and so early that a decoder could have picked the end.
    """

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str
    finished: bool


def real_groups(
    stories: Iterable[str], prompts: Sequence[str], tokenizer: Tokenizer, max_tokens: int
) -> list[list[Excerpt]]:
    """Groups of excerpts, one for each prompt; no story is used twice.

    A story that is no longer than the prompt it would stand for is left out.

    Args:
        stories: read as far as they are needed for 12 groups.
        prompts: of the study; their lengths in words are used.
        tokenizer: the model's.
        max_tokens: of an excerpt.

    Raises:
        UsageError: there are too few stories for `FEWEST_GROUPS` groups.
    """
    lengths = [len(_WORD.findall(prompt)) for prompt in prompts]
    left = iter(stories)
    groups: list[list[Excerpt]] = []
    while len(groups) < _MOST_GROUPS:
        group = [found for n in lengths if (found := _next(left, n, tokenizer, max_tokens))]
        if len(group) < len(prompts):
            break
        groups.append(group)
    if len(groups) < FEWEST_GROUPS:
        raise UsageError(
            f"there are real stories for {len(groups)} groups of {len(prompts)}; a study needs {FEWEST_GROUPS}: "
            "give more stories (--real) or fewer prompts (--limit)"
        )
    return groups


def _next(stories: Iterator[str], n_words: int, tokenizer: Tokenizer, max_tokens: int) -> Excerpt | None:
    """The excerpt of the first story that can be divided after n words."""
    return next((found for story in stories if (found := _excerpt(story, n_words, tokenizer, max_tokens))), None)


def _excerpt(story: str, n_words: int, tokenizer: Tokenizer, max_tokens: int) -> Excerpt | None:
    ends = [match.end() for match in _WORD.finditer(story)]
    if len(ends) <= n_words:
        return None
    given = story[: ends[n_words - 1]] if n_words else ""
    prompt_ids, all_ids = tokenizer.encode(given), tokenizer.encode(story)
    if all_ids[: len(prompt_ids)] != prompt_ids:  # a vocabulary that joins what was cut
        return None
    token_ids = all_ids[len(prompt_ids) :]
    if len(token_ids) < max_tokens:
        return Excerpt(tuple(prompt_ids), tuple(token_ids), story[len(given) :], True)
    shown = tokenizer.detokenize(all_ids[: len(prompt_ids) + max_tokens])
    text = shown[len(tokenizer.detokenize(prompt_ids)) :]
    return Excerpt(tuple(prompt_ids), tuple(token_ids[:max_tokens]), text, False)
