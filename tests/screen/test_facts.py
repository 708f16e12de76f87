"""The facts of a terminal: its width, dumb ones, and whether output may be styled; the consoles that follow them."""

import io
import os
import pty
import sys
import termios

import pytest

from tinystory.screen.console import console
from tinystory.screen.facts import is_dumb, styled, width_of


class Stream(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


@pytest.mark.parametrize(
    ("term", "dumb"),
    [("dumb", True), ("unknown", True), ("DUMB", True), ("", True), (None, True), ("xterm", False), ("vt100", False)],
)
@pytest.mark.skipif(sys.platform == "win32", reason="a Windows console has no TERM")
def test_a_terminal_without_a_name_is_a_dumb_one(term, dumb):
    assert is_dumb({} if term is None else {"TERM": term}) == dumb


XTERM = {"TERM": "xterm"}


@pytest.mark.parametrize(
    ("color", "terminal", "environment", "may"),
    [
        ("always", False, {"NO_COLOR": "1", "TERM": "dumb"}, True),
        ("never", True, {"FORCE_COLOR": "1", **XTERM}, False),
        ("auto", True, XTERM, True),
        ("auto", False, XTERM, False),
        ("auto", True, {"TERM": "dumb"}, False),
        ("auto", True, {}, False),
        ("auto", True, {"NO_COLOR": "1", **XTERM}, False),
        ("auto", True, {"NO_COLOR": "", **XTERM}, True),
        ("auto", False, {"FORCE_COLOR": "1", **XTERM}, True),
        ("auto", False, {"FORCE_COLOR": "1", "NO_COLOR": "1", **XTERM}, False),
        ("auto", True, {"FORCE_COLOR": "1", "NO_COLOR": "1", **XTERM}, False),
    ],
)
def test_one_rule_says_who_may_be_styled(monkeypatch, color, terminal, environment, may):
    assert styled(color, Stream(terminal), environment) == may
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    output = Stream(terminal)
    monkeypatch.setattr(sys, "stdout", output)
    console(color).print("plain :smile: [bold]text[/bold]", style="bold red")
    escapes = may and not is_dumb(environment)
    assert output.getvalue() == (
        "\x1b[1;31mplain :smile: [bold]text[/bold]\x1b[0m\n" if escapes else "plain :smile: [bold]text[/bold]\n"
    )


@pytest.mark.parametrize(("columns", "width"), [(132, 132), (0, 40)])
def test_the_terminal_knows_its_width_better_than_columns(monkeypatch, columns, width):
    monkeypatch.setenv("COLUMNS", "40")
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, columns))
    with os.fdopen(slave, "w") as terminal:
        assert width_of(terminal) == width
    os.close(master)
    assert width_of(io.StringIO()) == 40
