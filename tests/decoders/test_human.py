"""A person picks the tokens: the sampler, and the list of choices in the chat."""

import io

import pytest
import torch
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from tinystory.decoding import Decoder, Request, Step
from tinystory.decoding.loop import run
from tinystory.decoding.plugins import discover
from tinystory.decoding.spec import parse_spec
from tinystory.errors import UsageError
from tinystory.repl.app import App, ChatSettings
from tinystory.screen.screen import Screen
from tinystory.studio.backend import ModelBackend
from tinystory.studio.studio import Studio
from tinystory.testing import ToySession, conformance
from tinystory_decoders.human import Human

CTRL_C, CTRL_D = "\x03", "\x04"


def test_conformance():
    assert conformance(Human()) == []
    assert not Human.repeatable


def test_the_choice_is_taken():
    request = Request((0,), 9, 1, choose=lambda logits, step: step.position + 2)
    stage = Human()
    assert stage(torch.zeros(9), Step(request, [0, 5], frozenset(), stage.start(request))) == 4


def test_nobody_to_ask_is_one_line():
    with pytest.raises(UsageError, match="human works in the chat only"):
        list(run(ToySession(), [(Decoder((), Human()), Request((0,), 9, 1))]))


@pytest.fixture
def talk(monkeypatch):
    """Feed keys to a chat with the shipped mini model. Return the studio and the printed text."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    registry = discover(user_folder=None)
    backend = ModelBackend.open("mini", "float32", "cpu")

    def converse(keys, spec="human"):
        studio = Studio(registry, parse_spec(spec, registry), backend=backend, open_model=lambda name: backend, seed=7)
        stream = io.StringIO()
        with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=DummyOutput()):
            keyboard.send_text(keys + CTRL_D * 3)  # what is too many is not read
            assert App(studio, Screen(stream, color=False), ChatSettings(color=False)).run() == 0
        return studio, stream.getvalue()

    return converse


def test_by_enter_by_number_and_by_text(talk):
    keys = "Once upon\r" + "\r" + "1\r" + "there\r" + "2\r" + " was\r"
    studio, output = talk(keys + CTRL_C, "top-k 200 | human")
    assert studio.text == "Once upon a time there were was"
    assert len(studio.tree.turn.picked) == 5
    assert "\nOnce upon a time\n1 " in output
    assert output.count("Enter takes the likeliest") == 1
    assert output.endswith("\nOnce upon a time there were was\n— cancelled\n\n")


def test_a_token_that_is_not_left_is_asked_for_again(talk):
    studio, output = talk("Once upon a time\r" + "zebra\r" + "11\r" + ",\r" + CTRL_D, "top-k 3 | human")
    assert studio.text == "Once upon a time,"
    assert 'no possible token is "zebra"' in output
    assert 'no possible token is "11"' in output
    assert "cancelled" in output


def test_the_end_ends_the_story(talk):
    studio, output = talk("Once upon a time. The end.\r" + "\r" * 3)
    assert "(the end)" in output
    assert studio.tree.turns[1].written.finish_reason == "eos"
    assert studio.tree.text(1) == "Once upon a time. The end."


def test_several_stories_are_refused(talk):
    _, output = talk("One day\r\r" + CTRL_C + "/more 2\r/compare greedy ; human\r")
    assert output.count("human picks for one story at a time, not side by side") >= 1


def test_what_was_picked_can_be_looked_back_at(talk):
    _, output = talk("One day\r,\r\r" + CTRL_C + "/trace -1\r/whatif greedy\r")
    assert "unexpected error" not in output
    assert "failed" not in output
