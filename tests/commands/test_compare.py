"""`tinystory compare`: one prompt, several decoders, the same noise."""

import io
import json
import os
import re
import signal
import sys

import pytest

from tinystory.cli import main
from tinystory.commands import compare
from tinystory.decoding import Token
from tinystory.decoding.plugins import discover
from tinystory.decoding.spec import parse_spec
from tinystory.errors import UsageError
from tinystory.evaluation.comparison import FEWEST, MOST, measures, requests
from tinystory.safe.showing import visible
from tinystory.settings import BUILT_IN
from tinystory.writing.generate import Story

SAMPLE = "top-k 40 | sample 0.8"


class Terminal(io.StringIO):
    """Standard output that is a terminal."""

    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def _own_surroundings(monkeypatch, tmp_path):
    """No test reads the user's settings, and standard input is an empty pipe."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in BUILT_IN:
        monkeypatch.delenv(f"TINYSTORY_{name.upper()}", raising=False)
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b""), encoding="utf-8"))


@pytest.fixture
def tiny(checkpoint, capsys):
    """Run a command on the tiny model: (exit code, standard output, standard error)."""

    def run(*argv):
        code = main([*map(str, argv), "-m", str(checkpoint)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def on_terminal(tiny, monkeypatch):
    """The same with standard output on a terminal of some width: (exit code, screen, standard error)."""

    def run(width, *argv):
        screen = Terminal()
        monkeypatch.setattr(sys, "stdout", screen)
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setenv("TERM", "xterm")
        code, _, err = tiny(*argv)
        return code, screen.getvalue(), err

    return run


def test_the_same_decoder_twice_writes_one_story_and_it_is_that_of_generate(tiny):
    arguments = ["Tim", "-s", 7, "-n", 30, "--json"]
    code, out, _ = tiny("compare", *arguments, "-d", SAMPLE, "-d", SAMPLE)
    assert code == 0
    one, other = json.loads(out)["stories"]
    assert one["token_ids"] == other["token_ids"]
    alone = json.loads(tiny("generate", *arguments, "-d", SAMPLE)[1])
    assert [one[key] for key in ("spec", "text", "token_ids")] == [alone[key] for key in ("spec", "text", "token_ids")]


def test_json_holds_what_replays_every_story(tiny):
    code, out, err = tiny("compare", "Tim", "-d", "greedy", "-d", "sampling 1.2", "-s", "7", "-n", "12", "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert set(found) == {
        "prompt", "seed", "model", "model_hash", "dtype", "device", "threads", "compiled", "max_tokens", "versions",
        "stories",
    }  # fmt: skip
    assert (found["prompt"], found["seed"], found["max_tokens"]) == ("Tim", 7, 12)
    assert [story["spec"] for story in found["stories"]] == ["greedy", "sample 1.2"]
    for story in found["stories"]:
        assert set(story) == {"spec", "text", "completion", "token_ids", "finish_reason", "statistics"}
        assert story["text"] == "Tim" + story["completion"]
        assert {"tokens", "tokens_per_second", "bits_per_token", "distinct_2", "repeated_4grams"} <= set(
            story["statistics"]
        )


def test_jsonl_streams_events_that_make_the_stories(tiny):
    out = tiny("compare", "Tim", "-d", "greedy", "-d", "sample", "-s", "7", "-n", "9", "--jsonl")[1]
    events = [json.loads(line) for line in out.splitlines()]
    for index, spec in enumerate(["greedy", "sample"]):
        *pieces, last = [event for event in events if event["story"] == index]
        assert "".join(event["text"] for event in pieces) == last["completion"]
        assert (last["event"], last["spec"], last["seed"]) == ("end", spec, 7)
        assert "distinct_2" in last["statistics"]


def test_a_pipe_gets_each_story_under_its_decoder_and_the_figures_go_to_standard_error(tiny):
    arguments = ["compare", "Tim", "-d", "greedy", "-d", SAMPLE, "-s", 7, "-n", 20]
    one, other = json.loads(tiny(*arguments, "--json")[1])["stories"]
    code, out, err = tiny(*arguments)
    assert code == 0
    assert out == f"== greedy\n{visible(one['text'])}\n\n== {SAMPLE}\n{visible(other['text'])}\n"
    lines = err.splitlines()
    assert len(lines) == 2
    assert all("bits/token · distinct-2" in line and "repeated 4-grams" in line for line in lines)
    assert lines[1].endswith(f"{SAMPLE} · seed 7")
    assert tiny(*arguments, "-q") == (0, out, "")


def test_a_terminal_gets_columns_with_their_figures(on_terminal):
    code, out, err = on_terminal(
        80, "compare", "Tim \x1b[31m", "-d", "greedy", "-d", SAMPLE, "-d", "sample", "-s", 7, "-n", 40
    )  # fmt: skip
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == f"\x1b[1m{'greedy'}\x1b[0m{'':18} │ \x1b[1m{SAMPLE}\x1b[0m    │ \x1b[1msample 1\x1b[0m"
    assert "Tim ␛[31m" in lines[2]
    plain = re.sub(r"\x1b\[[012]m", "", out)
    assert "\x1b" not in plain
    assert plain.count("┼") == 4
    assert plain.count("bits/token") == plain.count("distinct-2") == plain.count("repeated 4-grams") == 3
    assert err == "seed 7\n"


def test_a_terminal_too_narrow_for_columns_gets_the_stories_one_under_the_other(on_terminal):
    code, out, err = on_terminal(
        40, "compare", "Tim", "-d", "greedy", "-d", "sample", "-n", 9, "--color", "never", "-q"
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert out.startswith("== greedy\nTim")
    assert out.count("\n\n== sample 1\nTim") == 1
    assert "│" not in out
    assert "tokens" not in out


def test_a_prompt_comes_from_a_pipe(tiny, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Once upon\n"), encoding="utf-8"))
    out = tiny("compare", "-d", "greedy", "-d", "sample", "-n", "3", "-q")[1]
    assert out.count("Once upon") == 2


def test_stories_that_outgrow_the_context_are_named_at_the_end(tiny, on_terminal):
    prompt = "Once upon a time. " * 40
    arguments = ["compare", prompt, "-d", "greedy", "-d", "sample", "-s", 7, "-n", 70]
    assert tiny(*arguments, "-q")[2] == ""
    err = on_terminal(80, *arguments)[2]
    assert [line.split(" has ")[0] for line in err.splitlines()[:-1]] == [
        "tinystory: the story of greedy", "tinystory: the story of sample 1",
    ]  # fmt: skip


def test_an_interrupt_keeps_what_was_written(on_terminal, monkeypatch):
    def interrupted(*arguments):
        for n, event in enumerate(write(*arguments)):
            if n == 20:
                os.kill(os.getpid(), signal.SIGINT)
            yield event

    write = compare.write
    monkeypatch.setattr(compare, "write", interrupted)
    code, out, err = on_terminal(80, "compare", "Tim", "-d", "greedy", "-d", "sample 0.5", "-s", 7, "-n", 4000)
    assert code == 130
    assert out.count("cancelled") == 2
    assert out.endswith("\n")
    assert err == "seed 7\n"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ["from 2 to 8", "not 0"]),
        (["-d", "greedy"], ["from 2 to 8", "not 1", "-d"]),
        (["-d", "greedy"] * 9, ["from 2 to 8", "not 9"]),
        (["-d", "greedy", "-d", "topk 40"], ["top-k"]),
        (["-d", "greedy", "-d", "top-k 0"], ["k must be an integer ≥ 1"]),
        (["-d", "greedy", "-d", "sample", "--stop", ""], ["stop text is empty"]),
    ],
)
def test_a_mistake_is_one_or_two_lines_and_exit_2(tiny, argv, words):
    code, out, err = tiny("compare", "Tim", *argv)
    assert (code, out) == (2, "")
    assert err.startswith("tinystory: ")
    assert err.count("\n") <= 2
    assert all(word in err for word in words), err


def test_a_broken_decoder_leaves_whole_lines_and_says_why(on_terminal, tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text(
        "from dataclasses import dataclass\n"
        "from tinystory.decoding import LogitsProcessor\n\n"
        "@dataclass(frozen=True)\n"
        "class Broken(LogitsProcessor):\n"
        '    """Fails after a while."""\n'
        '    name = "broken"\n\n'
        "    def __call__(self, logits, step):\n"
        "        return logits[:3] if step.position > 12 else logits\n"
    )
    code, out, err = on_terminal(
        80, "compare", "Tim", "-d", "greedy", "-d", "broken | greedy", "--decoder-file", broken, "-n", 30
    )  # fmt: skip
    assert code == 1
    assert "Tim" in out
    assert out.endswith("\n")
    assert err.startswith("tinystory: ")


def test_every_request_has_the_same_noise():
    registry = discover(user_folder=None)
    decoders = [parse_spec(text, registry) for text in ("greedy", "sample")]
    asked = requests("Tim", decoders, 7, 30, ["."])
    assert [(r.prompt, r.decoder, r.seed, r.number, r.max_new_tokens, r.stop) for r in asked] == [
        ("Tim", decoder, 7, 0, 30, (".",)) for decoder in decoders
    ]
    for n in (FEWEST - 1, MOST + 1):
        with pytest.raises(UsageError, match=f"from {FEWEST} to {MOST}"):
            requests("Tim", decoders[:1] * n, 7, 30)


@pytest.mark.parametrize(
    ("completion", "distinct_2", "repeated_4grams"),
    [
        (" ran. He ran. He ran. He ran", 2 / 6, 2 / 4),
        (" ran far away", 1.0, None),
        (" ran", None, None),
        ("", None, None),
    ],
)
def test_measures_are_of_the_completion_alone(completion, distinct_2, repeated_4grams):
    [asked, _] = requests("He ran. He ran. He", [parse_spec("greedy", discover(user_folder=None))] * 2, 7, 30)
    statistics = {"tokens_per_second": 50.0, "bits_per_token": 1.5}
    found = measures(Story(asked, completion, (0,), (Token(5, -1.0),), "length", statistics))
    assert (found.distinct_2, found.repeated_4grams) == (distinct_2, repeated_4grams)
    assert (found.tokens, found.tokens_per_second, found.bits_per_token) == (1, 50.0, 1.5)
    assert found.finish_reason == "length"
