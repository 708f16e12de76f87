"""The welcome and the tour: ten steps on the story on the desk, each at the prompt."""

import io
import os
import re
import signal
import sys

import pytest
from scripted_chat import CTRL_C, CTRL_D, ScriptedBackend, write

from tinystory.errors import TinystoryError
from tinystory.interrupts import Terminated
from tinystory.repl.app import App, ChatSettings
from tinystory.repl.guide.tour import LEFT, Tour
from tinystory.repl.guide.welcome import welcome
from tinystory.screen.screen import Screen

BEGINNING = "Once upon a time"


def done(output):
    """Return the lines that were done, and the numbers of the steps that were offered."""
    return re.findall(r"(?m)^> (.*)", output), re.findall(r"(?m)^— (\d+)/10 ", output)


def turns(n):
    return [([f" w{number}"], "length") for number in range(n)]


@pytest.mark.parametrize("plain", ["", "NO_COLOR is set"])
def test_enter_goes_through_ten_steps_from_an_empty_desk_even_past_those_that_fail(make, talk, plain):
    """The scripted model has neither a vocabulary nor logits, so five steps fail."""
    studio = make(*turns(6), plain=plain)
    code, output = talk(studio, "/tour\r" + "\r" * 10 + CTRL_D)
    lines, steps = done(output)
    assert code == 0
    assert steps == [str(n) for n in range(1, 11)]
    assert lines == [
        "/tour", "/retry", "/compare top-k 40 | sample 0.8 ; greedy ; sample 1.5",
        "/stats" if plain else "/color surprise", "/walk", "/pick -3 #2", "/trace -1", "/whatif greedy", "/tree",
        "/decoder top-k 40 | min-p 0.05 | sample 0.9",
    ]  # fmt: skip
    assert output.count("unexpected error") == (4 if plain else 5)
    assert "That was the tour." in output
    assert [request.prompt for request in studio.backend.requests][:2] == [BEGINNING] * 2
    assert studio.spec == "top-k 40 | min-p 0.05 | sample 0.9"


@pytest.mark.parametrize(("typed", "left"), [("/len 5\r", True), ("/undo\r", True), (CTRL_C, True), ("\r", False)])
def test_anything_but_the_step_leaves_the_tour(make, talk, typed, left):
    studio = make(*turns(3))
    _, output = talk(studio, "/tour\r\r" + typed + CTRL_D)
    assert (LEFT in output) == left
    assert (done(output)[1] == ["1", "2"]) == left
    assert "once more" not in output


def test_own_words_begin_the_tour_as_well(make, talk):
    studio = make(*turns(1))
    _, output = talk(studio, "/tour\rThe owl\r" + CTRL_D, quiet=True)
    assert studio.backend.requests[0].prompt == "The owl"
    assert LEFT not in output
    assert done(output)[1] == ["1", "2"]


def test_ctrl_c_in_the_middle_of_a_step_keeps_the_text_and_leaves(make, talk):
    def press():
        os.kill(os.getpid(), signal.SIGINT)

    studio = make(([" sat", press, " never"], "eos"))
    _, output = talk(studio, "/tour\r\r" + CTRL_D)
    assert studio.text == f"{BEGINNING} sat"
    assert LEFT in output
    assert done(output)[1] == ["1"]


def test_a_story_on_the_desk_goes_on_and_the_tour_can_begin_anew(make, talk):
    studio = make(*turns(4))
    write(studio, "The owl")
    _, output = talk(studio, "/tour\r\r\r/tour\r\r" + CTRL_D)
    assert done(output) == (["/tour", "/go 40", "/retry", "/tour", "/go 40"], ["1", "2", "3", "1", "2"])
    assert LEFT in output


def test_as_long_as_nothing_could_be_written_the_tour_offers_to_write(make, talk):
    studio = make(backend=ScriptedBackend(error=TinystoryError("the model toy did not load")))
    _, output = talk(studio, "/tour\r\r\r" + CTRL_D)
    assert done(output)[1] == ["1", "1", "1"]
    studio.backend = ScriptedBackend(*turns(1))
    tour = Tour(studio)
    assert tour.offer()[1] == BEGINNING
    assert tour.take(BEGINNING)
    write(studio, "x")
    assert tour.offer()[1] == "/retry"
    studio.goto(0)
    assert tour.offer()[1] == BEGINNING


def test_on_a_dumb_terminal_enter_alone_does_the_step(make, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys, "stdin", io.StringIO("/tour\n\n\n/len 5\n"))
    stream = io.StringIO()
    studio = make(*turns(2))
    with pytest.raises(Terminated):
        App(studio, Screen(stream, color=False), ChatSettings(color=False)).run()
    shown = " ".join(stream.getvalue().split())
    assert f"Enter alone does {BEGINNING}" in shown
    assert "Enter alone does /retry" in shown
    assert LEFT in shown
    assert len(studio.backend.requests) == 2


def test_the_welcome_says_what_there_is_to_see_and_breaks_between_commands(make, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    seen = "try /compare greedy ; sample 0.8 ; sample 1.5 · /color surprise · /walk · /tour"
    assert welcome(make(), 80, first_time=True).splitlines()[3:] == [seen]
    assert welcome(make(), 60, first_time=True).splitlines()[3:] == [seen[:45], "/color surprise · /walk · /tour"]
    assert "/tour" in welcome(make(), 80, first_time=False)
    monkeypatch.setenv("TERM", "dumb")
    assert welcome(make(plain="it is a dumb one"), 80, first_time=True).endswith("sample 1.5 · /tour")
