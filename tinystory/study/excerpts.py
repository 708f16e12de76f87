"""Cut openings and excerpts from real stories, the latter in the way in which the stories of decoders are cut.

A decoder continues a prompt by at most max_tokens tokens. The real story that is compared with it is divided after as
many words as the prompt has. The part before stands for the prompt, and at most max_tokens tokens after it are
measured. Knows texts and tokens, and no decoder.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from tinystory.errors import UsageError
from tinystory.text.tokenizer import Tokenizer

__all__ = ["FEWEST_GROUPS", "Excerpt", "openings", "real_groups"]

FEWEST_GROUPS = 3
"""The fewest groups that show how much groups of real stories differ."""

_MOST_GROUPS = 12
_WORD = re.compile(r"\S+")
_FIRST_SENTENCE = re.compile(r"\s*(\S.{0,300}?[.!?…][\"'”’]*)(?=\s+\S)", re.DOTALL)
_MOST_WORDS = 16
"""Words of an opening; a longer first sentence is cut there."""


@dataclass(frozen=True)
class Excerpt:
    """A part of a real story.

    Attributes:
        prompt_ids: the tokens before the part, with BOS if the vocabulary has one.
        token_ids: the tokens of the part.
        text: the text of these tokens.
        finished: whether the story ends with this part, early enough that a decoder could have picked its end.
    """

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str
    finished: bool


def openings(stories: Iterator[str], n: int) -> tuple[str, ...]:
    """Take the first sentences of the next n stories as prompts, at most 16 words of each.

    A story without anything after its opening is left out. There may be fewer openings than n.
    """
    return tuple(islice(filter(None, map(_opening, stories)), n))


def _opening(story: str) -> str:
    """Return the first sentence of a story, or its first words; empty if nothing follows."""
    sentence = _FIRST_SENTENCE.match(story)
    end = sentence.end() if sentence else len(story)
    ends = [word.end() for word in islice(_WORD.finditer(story), _MOST_WORDS + 1)]
    if len(ends) > _MOST_WORDS:
        end = min(end, ends[_MOST_WORDS - 1])
    return story[:end].strip() if story[end:].strip() else ""


def real_groups(
    stories: Iterable[str], prompts: Sequence[str], tokenizer: Tokenizer, max_tokens: int
) -> list[list[Excerpt]]:
    """Return groups of excerpts, with one excerpt for each prompt. No story is used twice.

    A story that is not longer than its prompt is left out.

    Args:
        stories: real stories, read until there are 12 groups.
        prompts: the prompts of the study; only their lengths in words are used.
        tokenizer: the tokenizer of the model.
        max_tokens: most tokens of an excerpt.

    Raises:
        UsageError: there are too few stories for `FEWEST_GROUPS` groups.
    """
    lengths = [len(_WORD.findall(prompt)) for prompt in prompts]
    left = iter(stories)
    groups: list[list[Excerpt]] = []
    while len(groups) < _MOST_GROUPS:
        group = [excerpt for n in lengths if (excerpt := _next(left, n, tokenizer, max_tokens))]
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
    """Return the excerpt of the first story that can be divided after n words, or None if there is no more."""
    excerpts = (_excerpt(story, n_words, tokenizer, max_tokens) for story in stories)
    return next(filter(None, excerpts), None)


def _excerpt(story: str, n_words: int, tokenizer: Tokenizer, max_tokens: int) -> Excerpt | None:
    ends = [match.end() for match in _WORD.finditer(story)]
    if len(ends) <= n_words:
        return None
    given = story[: ends[n_words - 1]] if n_words else ""
    given_ids, all_ids = tokenizer.encode(given, bos=False), tokenizer.encode(story, bos=False)
    if all_ids[: len(given_ids)] != given_ids:  # a token of the story spans the cut
        return None
    prompt_ids, token_ids = tokenizer.as_prompt(given_ids), all_ids[len(given_ids) :]
    if len(token_ids) < max_tokens:
        return Excerpt(tuple(prompt_ids), tuple(token_ids), story[len(given) :], True)
    shown = tokenizer.detokenize([*prompt_ids, *token_ids[:max_tokens]])
    text = shown[len(tokenizer.detokenize(prompt_ids)) :]
    return Excerpt(tuple(prompt_ids), tuple(token_ids[:max_tokens]), text, False)
