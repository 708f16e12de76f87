"""Give lower-cased stories their capitals back, by the example of stories that have them.

  python scripts/restore_case.py --like train.txt --restore lower.txt --out restored.txt

A word takes the form that it most often has after the same two tokens, else after the same one, else anywhere; an
unknown word is capitalised where words after that token mostly are. Every tenth story with capitals is first put aside,
to report how many of its words come back as they were. Left out are pieces of stories, which do not open as some
stories with capitals do, and text that was decoded wrongly by its publisher.
"""

import argparse
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from tinystory.data.records import SEPARATOR
from tinystory.data.sources import read_stories
from tinystory.errors import TinystoryError

TOKEN = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*|\n+|\d+|[^\w\s]+|_+")
HELD_OUT = 10
COMMON = 3
MOJIBAKE = "â€"


class Caser:
    """How words are written, by what stands before them."""

    def __init__(self) -> None:
        self.forms: defaultdict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        self.capitalised: defaultdict[str, Counter[bool]] = defaultdict(Counter)
        self.openings: Counter[tuple[str, ...]] = Counter()

    def learn(self, story: str) -> None:
        """Count the words of a story with capitals."""
        self.openings[opening(story)] += 1
        for before, token in in_context(story):
            word = token.group()
            if word[0].isalpha():
                for key in keys(before, word):
                    self.forms[key][word] += 1
                self.capitalised[before[-1]][word[0].isupper()] += 1

    def restore(self, story: str) -> str:
        """The story with its capitals; nothing but the case of letters changes."""
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
        found = self.capitalised.get(before[-1], Counter())
        first = word[0].upper()  # of some letters two: "ß" stays
        return first + word[1:] if found[True] > found[False] and len(first) == 1 else word


def in_context(story: str) -> Iterator[tuple[tuple[str, str], re.Match[str]]]:
    """Every token with the two before it, in lower case; a story begins like a paragraph."""
    before = ("\n", "\n")
    for token in TOKEN.finditer(story):
        yield before, token
        before = (before[-1], token.group().lower())


def keys(before: tuple[str, str], word: str) -> list[tuple[str, ...]]:
    """Where a word's forms are counted, the most telling first."""
    word = word.lower()
    return [(*before, word), (before[-1], word), (word,)]


def opening(story: str) -> tuple[str, ...]:
    """The first three words, in lower case."""
    return tuple(story.lower().split(maxsplit=3)[:3])


def share_restored(caser: Caser, stories: Iterable[str]) -> float:
    """The share of words that come back as they were."""
    right: Counter[bool] = Counter()
    for story in stories:
        restored = caser.restore(story.lower())
        for word, again in zip(TOKEN.findall(story), TOKEN.findall(restored), strict=True):
            if word[0].isalpha():
                right[word == again] += 1
    return right[True] / max(right.total(), 1)


def main() -> int:
    """Learn, report, restore."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--like", required=True, metavar="SOURCE", help="stories with capitals")
    parser.add_argument("--restore", required=True, metavar="SOURCE", help="lower-cased stories")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="where the restored stories go")
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
        found = list(read_stories(args.restore))
        whole = [s for s in found if caser.openings[opening(s)] >= COMMON and MOJIBAKE not in s]
        restored = "".join(f"{caser.restore(story)}\n{SEPARATOR.decode()}\n" for story in whole)
        args.out.write_text(restored, encoding="utf-8")
    except TinystoryError as error:
        print(f"restore_case: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"restore_case: {args.out} cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    print(f"{len(whole):,} of {len(found):,} stories restored")
    print(f"of the words of {len(held_out):,} stories held out, {share:.2%} come back as they were")
    return 0


if __name__ == "__main__":
    sys.exit(main())
