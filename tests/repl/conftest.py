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
    """Return a function that feeds keys to a whole chat and returns its exit code and its printed text."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")

    def converse(studio, keys, history=None, **settings):
        stream = io.StringIO()
        settings = ChatSettings(**{"color": False, **settings})
        with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=DummyOutput()):
            keyboard.send_bytes(keys.encode(errors="surrogateescape"))
            code = App(studio, Screen(stream, color=settings.color), settings, history).run()
        return code, stream.getvalue()

    return converse
