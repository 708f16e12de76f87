"""Give lower-cased stories their capitals back, by learning from stories that have capitals.

  python scripts/restore_case.py --like train.txt --restore lower.txt --out restored.txt

A word gets the form that it has most often after the same two tokens, else after the same one token, else anywhere. An
unknown word gets a capital if most words after the same token have one. Every tenth story with capitals is first held
out, to report how many of its words are restored exactly. Two kinds of stories are left out: stories
whose first three words begin fewer than three stories with capitals, because they are parts of stories, and stories
with characters that were decoded in a wrong way.
"""

import argparse
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from tinystory.data.separators import SEPARATOR
from tinystory.data.sources import read_stories
from tinystory.errors import TinystoryError

TOKEN = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*|\n+|\d+|[^\w\s]+|_+")
HELD_OUT = 10
"""One of this many stories is held out."""
COMMON = 3
"""The first words of a whole story stand at the beginning of at least this many stories with capitals."""
MOJIBAKE = "â€"
"""The beginning of a curly quote whose UTF-8 was decoded in a wrong way."""


class Caser:
    """Counts of how words are written after other tokens."""

    def __init__(self) -> None:
        self.forms: defaultdict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        self.capitalised: defaultdict[str, Counter[bool]] = defaultdict(Counter)
        self.openings: Counter[tuple[str, ...]] = Counter()

    def learn(self, story: str) -> None:
        """Count how the words of a story with capitals are written."""
        self.openings[opening(story)] += 1
        for before, token in in_context(story):
            word = token.group()
            if word[0].isalpha():
                for key in keys(before, word):
                    self.forms[key][word] += 1
                self.capitalised[before[-1]][word[0].isupper()] += 1

    def restore(self, story: str) -> str:
        """Return the story with its capitals; only the case of letters changes."""
        pieces, done = [], 0
        for before, token in in_context(story):
            pieces += [story[done : token.start()], self._form(token.group(), before)]
            done = token.end()
        return "".join([*pieces, story[done:]])

    def _form(self, word: str, before: tuple[str, str]) -> str:
        if not word[0].isalpha():
            return word
        for key in keys(before, word):
            if key in self.forms:
                return self.forms[key].most_common(1)[0][0]
        counts = self.capitalised.get(before[-1], Counter())
        first = word[0].upper()  # "ß" would become two letters, so it stays
        return first + word[1:] if counts[True] > counts[False] and len(first) == 1 else word


def in_context(story: str) -> Iterator[tuple[tuple[str, str], re.Match[str]]]:
    """Yield every token with the two tokens before it, in lower case; a story begins as a paragraph does."""
    before = ("\n", "\n")
    for token in TOKEN.finditer(story):
        yield before, token
        before = (before[-1], token.group().lower())


def keys(before: tuple[str, str], word: str) -> list[tuple[str, ...]]:
    """Return the keys under which the forms of a word are counted, the most specific first."""
    word = word.lower()
    return [(*before, word), (before[-1], word), (word,)]


def opening(story: str) -> tuple[str, ...]:
    """Return the first three words, in lower case."""
    return tuple(story.lower().split(maxsplit=3)[:3])


def share_restored(caser: Caser, stories: Iterable[str]) -> float:
    """Return the share of words that are restored exactly, from 0 to 1."""
    right: Counter[bool] = Counter()
    for story in stories:
        restored = caser.restore(story.lower())
        for word, again in zip(TOKEN.findall(story), TOKEN.findall(restored), strict=True):
            if word[0].isalpha():
                right[word == again] += 1
    return right[True] / max(right.total(), 1)


def main() -> int:
    """Parse the command line, learn, restore, and report; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--like", required=True, metavar="SOURCE", help="stories that have capitals")
    parser.add_argument("--restore", required=True, metavar="SOURCE", help="lower-cased stories")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file to write")
    args = parser.parse_args()
    caser, held_out = Caser(), []
    try:
        for index, story in enumerate(read_stories(args.like)):
            if index % HELD_OUT:
                caser.learn(story)
            else:
                held_out.append(story)
        share = share_restored(caser, held_out)
        for story in held_out:
            caser.learn(story)
        stories = list(read_stories(args.restore))
        whole = [s for s in stories if caser.openings[opening(s)] >= COMMON and MOJIBAKE not in s]
        restored = "".join(f"{caser.restore(story)}\n{SEPARATOR.decode()}\n" for story in whole)
        args.out.write_text(restored, encoding="utf-8")
    except TinystoryError as error:
        print(f"restore_case: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"restore_case: {args.out} cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    print(f"{len(whole):,} of {len(stories):,} stories restored")
    print(f"in {len(held_out):,} held-out stories, {share:.2%} of the words were restored exactly")
    return 0


if __name__ == "__main__":
    sys.exit(main())
