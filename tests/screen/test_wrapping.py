"""Text breaks between words and by cells: whole texts, and stories that come in pieces."""

import io
import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prompt_toolkit.utils import get_cwidth

from tinystory.safe.showing import visible
from tinystory.screen.blocks import Spans
from tinystory.screen.cells import clusters
from tinystory.screen.screen import Screen
from tinystory.screen.wrapping import LineBreaker, Wrapping, wrap

texts = st.lists(st.text(st.sampled_from("ab é汉 \n"), max_size=9), max_size=30)


def wrapped(pieces, width):
    wrapping = Wrapping(lambda: width)
    return "".join(text for piece in pieces for text, _ in wrapping.add(piece, None)) + "".join(
        text for text, _ in wrapping.settle()
    )


FAMILY, FLAGS, WAVE = "👩\u200d👩\u200d👧", "🇯🇵🇫🇷", "👋🏽"
WORDS = [
    *("日本語", "むかしむかし", "ｶﾀｶﾅ", FAMILY, FLAGS, WAVE, "🦉", "Zoe\u0308", "e\u0301" * 9, "\u0301", "\u200d"),
    *("a", "owl,", "/home/owl/stories/one.txt", "x" * 25, "\x1b[31m"),
]
many = st.lists(st.sampled_from([*WORDS, " ", " ", "  ", "\t", "\n"]), max_size=25).map("".join)


@given(many, st.integers(1, 20))
def test_no_line_is_wider_than_the_width_unless_it_is_one_word_that_may_not_break(text, width):
    for line in wrap(text, width):
        assert get_cwidth(line) <= width or " " not in line
    for line in wrap(text, width, break_words=True):
        assert get_cwidth(line) <= width or len(line.rstrip("\u0301\u200d")) == 1  # a character wider than the line


@given(many, st.integers(1, 20))
def test_lines_break_between_words_and_lose_only_space(text, width):
    words = visible(text).split()
    assert " ".join(wrap(text, width)).split() == words
    assert "".join("".join(wrap(text, width, break_words=True)).split()) == "".join(words)
    for line, following in itertools.pairwise(wrap(" ".join(text.split()), width)):
        assert get_cwidth(f"{line} {following.split()[0]}") > width  # a line takes all the words that fit


@given(many, st.integers(1, 20))
def test_a_character_of_several_code_points_stays_on_one_line_that_is_wide_enough(text, width):
    widest = max(map(get_cwidth, clusters(visible(text))), default=1)
    lines = wrap(text, max(width, widest), break_words=True)
    assert [cluster for line in lines for word in line.split() for cluster in clusters(word)] == [
        cluster for word in visible(text).split() for cluster in clusters(word)
    ]


@given(st.lists(many, max_size=4), st.integers(1, 20), st.booleans())
@settings(max_examples=50)
def test_lines_do_not_depend_on_how_the_text_arrives(parts, width, break_words):
    breaker = LineBreaker(width, break_words=break_words)
    lines = [line for part in parts for line in breaker.add(part)]
    assert [*lines, *breaker.finish()] == wrap("".join(parts), width, break_words=break_words)


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("日本語の話 むかし", 10, ["日本語の話", "むかし"]),
        ("日本語の話", 4, ["日本", "語の", "話"]),
        (FAMILY * 2, 8, [FAMILY, FAMILY]),
        (FLAGS, 4, ["🇯🇵", "🇫🇷"]),
        (WAVE + WAVE, 5, [WAVE, WAVE]),
        ("Zoe\u0308 ran", 3, ["Zoe\u0308", "ran"]),
        ("漢e\u0301", 1, ["漢", "e\u0301"]),
        ("漢\u0301漢", 1, ["漢\u0301", "漢"]),
    ],
)
def test_words_break_between_characters_where_the_caller_asks(text, width, lines):
    assert wrap(text, width, break_words=True) == lines


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
    """Even text without spaces streams on."""
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


@pytest.mark.parametrize("parts", [["a\tb\n\tc \t d"], ["a", "\t", "b\n", "\tc", " ", "\t", " d"]])
def test_a_tab_goes_to_the_next_tab_stop(parts):
    wrapping = Wrapping(lambda: 80)
    pieces = [piece for part in parts for piece in wrapping.add(part, "")] + wrapping.settle()
    assert "".join(text for text, _ in pieces) == "a       b\n        c        d"


def test_a_tab_near_the_edge_breaks_the_line():
    wrapping = Wrapping(lambda: 20)
    pieces = wrapping.add("twelve cells\tand seven", "") + wrapping.settle()
    assert "".join(text for text, _ in pieces) == "twelve cells    and\nseven"
