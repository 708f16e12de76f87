"""A story breaks between words, however it comes in pieces."""

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompt_toolkit.utils import get_cwidth

from tinystory.screen.blocks import Spans
from tinystory.screen.screen import Screen
from tinystory.screen.wrapping import Wrapping

texts = st.lists(st.text(st.sampled_from("ab é汉 \n"), max_size=9), max_size=30)


def wrapped(pieces, width):
    wrapping = Wrapping(lambda: width)
    return "".join(text for piece in pieces for text, _ in wrapping.add(piece, None)) + "".join(
        text for text, _ in wrapping.settle()
    )


@given(texts, st.integers(1, 60))
def test_nothing_but_space_changes_and_words_stay_whole(pieces, width):
    text = "".join(pieces)
    shown = wrapped(pieces, width)
    assert shown.split() == text.split()
    lines = shown.split("\n")
    assert len(lines) >= text.count("\n") + 1
    if all(get_cwidth(word) <= min(width, 20) for word in text.split()):
        assert all(get_cwidth(line.rstrip(" ")) <= width for line in lines)
    if get_cwidth(text.replace("\n", "")) <= width:
        assert shown == text


@given(texts, st.integers(1, 60))
def test_a_story_in_pieces_is_the_story_in_one(pieces, width):
    words = "".join(pieces).split()
    if all(get_cwidth(word) <= min(width, 20) for word in words):
        assert wrapped(pieces, width) == wrapped(["".join(pieces)], width)


@given(texts, st.integers(1, 60))
def test_little_is_held_back(pieces, width):
    """Text without spaces goes on streaming."""
    wrapping = Wrapping(lambda: width)
    come = shown = ""
    for piece in pieces:
        come += piece
        shown += "".join(text for text, _ in wrapping.add(piece, None))
        missing = "".join(come.split()).removeprefix("".join(shown.split()))
        assert get_cwidth(missing) <= 20


@pytest.mark.parametrize("color", [False, True])
def test_a_streamed_story_breaks_between_words(monkeypatch, color):
    monkeypatch.setenv("COLUMNS", "24")
    stream = io.StringIO()
    screen = Screen(stream, color=color)
    screen.story("Once upon a", "bold")
    for piece in [
        " time",
        " there",
        " was",
        " a",
        " li",
        "ttle",
        " owl",
        ".",
        "\n",
        "It",
        " lov",
        "ed",
        " its m",
        "um",
    ]:
        screen.story(piece, "heat1")
    screen.fresh_line()
    screen.show(Spans((("Once upon a time there was one.", ""),)))
    assert re.sub("\x1b[^m]*m", "", stream.getvalue()) == (
        "Once upon a time there\nwas a little owl.\nIt loved its mum\nOnce upon a time there\nwas one.\n"
    )
