"""Text is cut by cells, and never in the middle of what a reader sees as one character."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompt_toolkit.utils import get_cwidth

from tinystory.screen.cells import clusters, padded, shorten, shorten_start

FAMILY, FLAGS, WAVE = "👩\u200d👩\u200d👧", "🇯🇵🇫🇷", "👋🏽"
texts = st.lists(st.sampled_from(["日本", "a", " ", FAMILY, FLAGS, WAVE, "e\u0301", "\u200d", "🇯🇵🇫"])).map("".join)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        ("owl", ["o", "w", "l"]),
        ("日本", ["日", "本"]),
        (f"a{FAMILY}b", ["a", FAMILY, "b"]),
        (FLAGS + "🇩", ["🇯🇵", "🇫🇷", "🇩"]),
        (WAVE + "🦉", [WAVE, "🦉"]),
        ("a🏽", ["a", "🏽"]),
        ("e\u0301\u0323x", ["e\u0301\u0323", "x"]),
        ("\u0301a", ["\u0301", "a"]),
        ("👩\u200d 👧", ["👩\u200d", " ", "👧"]),
    ],
)
def test_a_cluster_is_what_a_reader_sees_as_one_character(text, parts):
    assert list(clusters(text)) == parts


@given(texts)
def test_clusters_joined_are_the_text(text):
    assert "".join(clusters(text)) == text


@given(texts, st.integers(1, 30))
def test_a_shortened_text_fits_and_is_cut_between_characters(text, width):
    start, end = shorten(text, width), shorten_start(text, width)
    assert get_cwidth(start) <= width
    assert get_cwidth(end) <= width
    if get_cwidth(text) <= width:
        assert start == end == text
    else:
        parts = list(clusters(text))
        assert start[-1] == "…"
        assert any("".join(parts[:n]).rstrip() == start[:-1] for n in range(len(parts) + 1))
        assert end[0] == "…"
        assert any("".join(parts[n:]) == end[1:] for n in range(len(parts) + 1))


@pytest.mark.parametrize(
    ("width", "start", "end"),
    [
        (11, "むかし owl.", "むかし owl."),
        (10, "むかし ow…", "…かし owl."),
        (6, "むか…", "… owl."),
        (2, "…", "…."),
        (1, "…", "…"),
    ],
)
def test_texts_are_cut_by_cells(width, start, end):
    assert (shorten("むかし owl.", width), shorten_start("むかし owl.", width)) == (start, end)


def test_padding_counts_cells():
    assert padded("日本", 6) == "日本  "
    assert padded("日本", 3) == "日本"
