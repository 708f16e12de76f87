"""Let the value of a flag begin with dashes, such as `--separator ---`: argparse takes it for another flag."""

from collections.abc import Sequence

__all__ = ["with_joined_separator"]


def with_joined_separator(argv: Sequence[str]) -> list[str]:
    """Return a command line in which `--separator TEXT` is one word.

    >>> with_joined_separator(["eval", "a.txt", "--separator", "---", "--json"])
    ['eval', 'a.txt', '--separator=---', '--json']
    """
    words: list[str] = []
    for word in argv:
        if words and words[-1] == "--separator":
            words[-1] = f"--separator={word}"
        else:
            words.append(word)
    return words
