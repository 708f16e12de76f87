"""Lines that stand ready at the prompt: after a wrong name, Enter sends the corrected line and typing replaces it."""

import pytest
from prompt_toolkit.history import InMemoryHistory
from scripted_chat import CTRL_C, CTRL_D, run

from tinystory.errors import TinystoryError
from tinystory.repl.commands import execute
from tinystory.repl.guide.ready_line import corrected

LEFT, RIGHT, CTRL_E = "\x1b[D", "\x1b[C", "\x05"


@pytest.mark.parametrize(
    ("line", "better"),
    [
        ("/comp greedy ; sample", "/compare greedy ; sample"),
        ("/decoder topk 40 | sample", "/decoder top-k 40 | sample"),
        ("/decoder temp 0.8", "/decoder temperature 0.8"),
        ("/decoder sample 0.8 | beem", "/decoder sample 0.8 | beam"),
        ("/set sample temprature=3", "/set sample temperature=3"),
        ("/compare greedy ; samp 0.8", "/compare greedy ; sample 0.8"),
        ("/color colors", ""),
        ("/color surpise", "/color surprise"),
        ("/preset sav calm", "/preset save calm"),
        ("/help comp", "/help compare"),
        ("/cler", "/clear"),
        ("/col prob", "/color prob"),
        ("/c", ""),
        ("/decoder top 40", ""),
        ("/len x", ""),
    ],
)
def test_a_wrong_name_is_corrected_in_its_line(make, line, better):
    with pytest.raises(TinystoryError) as error:
        execute(make(), line)
    assert corrected(line, error.value) == better


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/c", "did you mean /clear, /color, /compare, /copy or /config?"),
        ("/decoder top 3", "did you mean `top-a`, `top-h`, `top-k`, `top-n-sigma` or `top-p`?"),
        ("/decoder nonsens", "no decoder stage is called 'nonsens': /decoders and `tinystory decoders` list them"),
    ],
)
def test_the_beginning_of_several_names_lists_them(make, line, message):
    with pytest.raises(TinystoryError) as error:
        execute(make(), line)
    assert message in str(error.value)
    assert len(str(error.value)) <= 120


@pytest.mark.parametrize(
    ("keys", "lens"),
    [
        ("\r", ["/len 5"]),
        ("/len 7\r", ["/len 7"]),
        ("\x1b[200~/len 8\x1b[201~\r", ["/len 8"]),
        (LEFT + RIGHT + "3\r", ["/len 53"]),
        (CTRL_E + "3\r", ["/len 53"]),
        (CTRL_C + "/len 9\r", ["/len 9"]),
    ],
)
def test_the_corrected_line_stands_ready(make, talk, keys, lens):
    history = InMemoryHistory()
    _, output = talk(make(), "/lenn 5\r" + keys + CTRL_D, history)
    assert [line.removeprefix("> ") for line in output.splitlines() if line.startswith("> ")] == ["/lenn 5", *lens]
    assert history.get_strings() == ["/lenn 5", *lens]
    assert "once more" not in output


def test_in_vi_the_corrected_line_stands_ready_too(make, talk):
    _, output = talk(make(), "/lenn 5\r3\r" + CTRL_D, keys="vi")
    assert "> /len 53\n" in output


@pytest.mark.parametrize("word", ["exit", "quit", "bye", "/bye", "/exit", "quit "])
def test_words_that_leave(make, talk, word):
    assert talk(make(), f"{word}\r") == (0, f"> {word.strip() if word[0] == '/' else '/quit'}\n")


def test_help_alone_is_help_and_with_a_space_a_story(make, talk):
    studio = make(([" me"], "length"), ([" out"], "length"), (["!"], "eos"))
    _, output = talk(studio, "help\r help\rhelp us\r/new help\r" + CTRL_D, quiet=True)
    assert output.startswith("> /help\nwrite ")
    assert [request.prompt for request in studio.backend.requests] == ["help", "help me help us", "help"]


def test_show_shows_what_is_loaded(make):
    studio = make(stop=("The end",), seed=None)
    shown = run(studio, "/show")
    for row in (
        "model       toy",
        "decoder     sample 0.8",
        "seed        random",
        "max-tokens  256",
        'stop texts  "The end"',
    ):
        assert row in shown
    assert run(studio, "/clear") == run(studio, "/new")
    assert run(studio, "/?") == run(studio, "/help")
