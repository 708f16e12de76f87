"""The screen: tables, outlines, tints and their backgrounds; and Ctrl-C while a story is written."""

import re
import signal
from types import SimpleNamespace

import pytest
from prompt_toolkit.utils import get_cwidth
from scripted_chat import printed

from tinystory import interrupts as interrupts_module
from tinystory.screen.blocks import Line, Outline, Table
from tinystory.screen.colours import HEAT, background
from tinystory.screen.terminal import Writing


def test_ctrl_c_is_noted_once_and_raised_when_nothing_looks(monkeypatch):
    moments = iter([10.0, 10.9, 11.1])
    monkeypatch.setattr(interrupts_module, "time", SimpleNamespace(monotonic=lambda: next(moments)))
    with Writing() as writing:
        assert not writing.interrupted
        signal.raise_signal(signal.SIGINT)
        assert writing.interrupted
        signal.raise_signal(signal.SIGINT)  # a second press within a second is not raised
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("width", [1, 2, 7, 20, 33, 80, 1000])
def test_tables_and_lines_lose_nothing_on_any_width(monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    table = Table((("名前", "two words", "a longer text that has to wrap somewhere"), ("x", "", "")), indent=2)
    shown = printed([table, Line("some more words\nand a line")])
    assert " ".join(shown.split()) == (
        "名前 two words a longer text that has to wrap somewhere x some more words and a line"
    )
    if width >= 80:
        assert shown.splitlines()[0] == "  名前  two words  a longer text that has to wrap somewhere"


def luminance(number):
    """Return the relative luminance (WCAG) of one of the 256 colours, from number 16 on."""
    if number < 232:
        place = number - 16
        steps = (place // 36, place // 6 % 6, place % 6)
        values = [0 if step == 0 else 55 + 40 * step for step in steps]
    else:
        values = [8 + 10 * (number - 232)] * 3
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (value / 255 for value in values)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_every_tint_can_be_read_on_its_background():
    assert luminance(231) == pytest.approx(1)
    for theme, backgrounds, least in [("dark", [0], 4), ("light", [1], 4), ("any", [0, 1], 3)]:
        for number in HEAT[theme]:
            for ground in backgrounds:
                low, high = sorted([luminance(number), ground])
                assert (high + 0.05) / (low + 0.05) >= least, (theme, number, ground)
        assert len(set(HEAT[theme])) == 5


def test_the_background_is_as_told_or_as_the_terminal_says():
    assert background("light", {"COLORFGBG": "15;0"}) == "light"
    assert background("dark", {"COLORFGBG": "0;15"}) == "dark"
    assert [background("auto", {"COLORFGBG": value}) for value in ("0;15", "0;default;7", "15;0", "")] == [
        "light", "light", "dark", "any"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (100, "● 2  The owl had a vase. It was big and brig…  top-k 40 | sample 0.8 · seed 7 · 176 tok · 1.34 bits"),
        (76, "● 2  The owl had a vase.…  top-k 40 | sampl… · seed 7 · 176 tok · 1.34 bits"),
        (60, "● 2  The owl had a vase. I…  top-k 40 | sample 0.8 · seed 7"),
        (40, "● 2  The owl had a vase. It was big an…"),
        (30, "● 2  The owl had a vase. It…"),
    ],
)
def test_a_row_of_the_tree_cuts_the_spec_a_little_or_leaves_the_last_facts_out(monkeypatch, width, line):
    """In 80 columns, two stages once left no room for the figures; in 60, the decoder was cut to a few letters."""
    monkeypatch.setenv("COLUMNS", str(width))
    facts = "top-k 40 | sample 0.8 · seed 7 · 176 tok · 1.34 bits"
    shown = printed([Outline((("● 2", "The owl had a vase. It was big and bright and old.", facts, ""),))])
    assert shown == line + "\n"


def test_a_long_first_cell_does_not_take_the_width_of_the_second(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    shown = printed([Table((("/go", "on"), ("/preset save NAME | load NAME | rm", "decoders of your own")))])
    assert shown == "/go  on\n/preset save NAME | load NAME | rm\n     decoders of your own\n"


@pytest.mark.parametrize("width", [24, 33, 60, 80])
@pytest.mark.parametrize("word", ["むかしむかし", "🦉🦉", "👩\u200d👩\u200d👧", "🇯🇵🇫🇷", "Zoe\u0308"])
def test_notices_and_tables_of_wide_letters_stay_within_the_screen(monkeypatch, width, word):
    """Lines were measured in characters before, and wide ones made a line twice as wide as the screen."""
    monkeypatch.setenv("COLUMNS", str(width))
    text = " ".join([word] * 30)
    blocks = Line(text, "note"), Table((("/go", text), (word, text)), indent=2), Table((("a", word * 30),))
    for block, n in zip(blocks, (30, 61, 30), strict=True):
        shown = printed([block])
        assert len(shown.splitlines()) > n // 30
        assert all(get_cwidth(line) <= width for line in shown.splitlines())
        assert "".join(shown.split()).count(word) == n


@pytest.mark.parametrize("n", range(10, 45))
def test_a_first_cell_of_any_length_is_told_apart_from_the_second(monkeypatch, n):
    """A text two cells too long for its column touched the next column before, as /compare did in /help."""
    monkeypatch.setenv("COLUMNS", "60")
    shown = printed([Table((("/" + "x" * n, "first words"), ("/" + "y" * 23, "on")))])
    assert re.search(r"x(  +|\n +)first words\n", shown)
    assert all(get_cwidth(line) < 60 for line in shown.splitlines())


def test_a_path_longer_than_the_screen_is_left_whole(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    path = "/home/owl/stories/むかしむかし.json"
    assert printed([Line(f"the story is in {path}")]) == f"the story is in\n{path}\n"
