"""Check that text on the screen can neither control the terminal nor be invisible."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinystory.safe.showing import visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Once upon a time.\n\tThe end", "Once upon a time.\n\tThe end"),
        ("\x1b[2J\x1b[1;1H", "␛[2J␛[1;1H"),
        ("\x1b]0;title\x07", "␛]0;title␇"),
        ("\x9b31m", "<U+009B>31m"),
        ("one\rtwo\x08\x7f\x00", "one␍two␈␡␀"),
        ("safe\u202egnp.exe\u202c", "safe<U+202E>gnp.exe<U+202C>"),
        ("a\u2066b\u200eb\ufeff", "a<U+2066>b<U+200E>b<U+FEFF>"),
        ("soft\u00adhyphen, zero\u200bwidth", "soft<U+00AD>hyphen, zero<U+200B>width"),
        ("\u2028\u2029", "<U+2028><U+2029>"),
        ("\ud83d", "<U+D83D>"),
        ("\ue000", "<U+E000>"),
        ("\ufffe\uffff\ufdd0\U0010ffff\ufffd", "<U+FFFE><U+FFFF><U+FDD0><U+10FFFF>\ufffd"),
        ("tag\U000e0041", "tag<U+E0041>"),
        ("[bold]not markup[/bold]", "[bold]not markup[/bold]"),
        (
            "naïve café, e\u0301, 汉字, 👩\u200d🚀, می\u200cخواهم",
            "naïve café, e\u0301, 汉字, 👩\u200d🚀, می\u200cخواهم",
        ),
    ],
)
def test_shows_what_would_act(text, shown):
    assert visible(text) == shown


@given(st.text(st.characters() | st.sampled_from("\x1b\x9b\x07\r\u202e\u2066\ud800\n\t\u200d")))
def test_nothing_hidden_is_left(text):
    shown = visible(text)
    hidden = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
    assert not [c for c in shown if unicodedata.category(c) in hidden and c not in "\n\t\u200c\u200d"]
    assert visible(shown) == shown


@given(st.text(), st.text())
def test_pieces_show_as_the_whole_does(one, other):
    """Stories are shown token by token."""
    assert visible(one) + visible(other) == visible(one + other)
