"""The token browser: its story between words, its place and tint, and how /walk opens it."""

import pytest
from prompt_toolkit.utils import get_cwidth
from scripted_chat import CTRL_D

from tinystory.errors import UsageError
from tinystory.repl import app as app_module
from tinystory.repl.browser import Alternative, Browser
from tinystory.repl.commands import Reply, execute
from tinystory.screen.colours import HEAT, rgb

TEXTS = ["Once", " upon", " a", " ti", "me", ",", " there", " lived", "\n", "A", " 狐"]


def lines(browser, width):
    return "".join(text for style, text in browser.story(width) if style != "[SetCursorPosition]").split("\n")


@pytest.mark.parametrize("width", [8, 12, 40])
@pytest.mark.parametrize("place", range(len(TEXTS)))
def test_the_story_breaks_between_words_and_the_cursor_is_at_the_token(width, place):
    browser = Browser(TEXTS, lambda _: [])
    browser.place = place
    shown = lines(browser, width)
    words = ["Once", "upon", "a", "time,", "there", "lived", "A", "狐"]
    assert " ".join(shown).replace("⏎", "").split() == words
    assert max(map(get_cwidth, shown)) <= width
    styles = [style for style, _ in browser.story(width)]
    assert styles[styles.index("[SetCursorPosition]") + 1] == "class:marked"


def test_the_place_and_the_tint_are_told():
    browser = Browser(TEXTS, lambda _: [])
    assert "".join(text for _, text in browser.where()).startswith("token 11 of 11, no tint")
    browser = Browser(["a", "b"], lambda _: [], "surprise", ["bold", "heat4"])
    browser.move(-1)
    where = browser.where()
    assert where[0] == ("", "token 1 of 2, ")
    assert ("class:heat0", "≤ 1 bit") in where
    assert browser.story(40) == [("[SetCursorPosition]", ""), ("class:marked", "a"), ("class:heat4", "b")]


def test_every_tint_has_its_colour_in_a_window():
    assert rgb(16) == "#000000"
    assert rgb(231) == "#ffffff"
    for numbers in HEAT.values():
        assert len({rgb(number) for number in numbers}) == 5


@pytest.mark.parametrize(("keys", "picked"), [("\x1b[D\x1b[B\r", ["/pick 2 #2"]), ("q", []), ("\x03", [])])
def test_walk_opens_the_browser_and_a_taken_token_is_picked(make, talk, monkeypatch, keys, picked):
    alternatives = [Alternative("x", 0.5, taken=True), Alternative("y", 0.1, taken=False)]
    opened, done = [], []

    def browser_of(studio, position):
        opened.append(position)
        talk.later(keys + CTRL_D)
        return Browser(["a", "b", "c"], lambda _: alternatives)

    def do(studio, line, keeper):
        done.append(line)
        return Reply(walk="2") if line == "/walk 2" else Reply()

    monkeypatch.setattr(app_module, "browser_of", browser_of)
    monkeypatch.setattr(app_module, "execute", do)
    assert talk(make(), "/walk 2\r")[0] == 0
    assert opened == ["2"]
    assert done == ["/walk 2", *picked]


def test_walk_on_a_blank_page_and_on_a_dumb_terminal_says_what_to_do(make, monkeypatch):
    monkeypatch.setattr("tinystory.studio.recall.n_bos_of", lambda *_: 1)
    with pytest.raises(UsageError, match="/walk: the page is blank; write something first"):
        execute(make(), "/walk")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr("tinystory.repl.commands.seeing.index_of", lambda *_: 1)
    with pytest.raises(UsageError, match="/top POS shows the alternatives"):
        execute(make(), "/walk")
