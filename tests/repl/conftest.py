"""Fixtures of the chat's tests: a studio with a scripted model, and whole conversations."""

import io
from functools import partial

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from scripted_chat import scripted_studio

from tinystory.decoding.plugins import discover
from tinystory.repl.app import App, ChatSettings
from tinystory.screen.screen import Screen


@pytest.fixture(scope="module")
def registry():
    return discover(user_folder=None)


@pytest.fixture
def make(registry):
    """Return a function that makes a studio with a scripted model."""
    return partial(scripted_studio, registry)


@pytest.fixture
def talk(monkeypatch):
    """Return a function that feeds keys to a whole chat and returns its exit code and its printed text.

    Its `later` feeds keys while the chat runs.
    """
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")

    def converse(studio, typed, history=None, **settings):
        stream = io.StringIO()
        settings = ChatSettings(**{"color": False, **settings})
        with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=DummyOutput()):
            converse.later = keyboard.send_text
            keyboard.send_bytes(typed.encode(errors="surrogateescape"))
            code = App(studio, Screen(stream, color=settings.color), settings, history).run()
        return code, stream.getvalue()

    return converse


@pytest.fixture
def terminal(tmp_path):
    """Return a function that starts Python code on a pseudo-terminal."""
    pytest.importorskip("pexpect")
    from terminal_chat import Terminal

    opened = []

    def start(code, *args, **options):
        opened.append(Terminal(code, *args, folder=tmp_path, **options))
        return opened[-1]

    yield start
    for one in opened:
        one.child.close(force=True)
