"""The commands that compare decoders, stories and models, with the shipped model."""

import copy
import io
import re
from dataclasses import replace

import pytest

from tinystory.decoding.plugins import discover
from tinystory.decoding.spec import parse_spec
from tinystory.errors import CheckpointError, TinystoryError, UsageError
from tinystory.repl.commands import execute
from tinystory.repl.stream import show_versus
from tinystory.screen.screen import Screen
from tinystory.studio.backend import ModelBackend
from tinystory.studio.studio import Studio


@pytest.fixture(scope="module")
def registry():
    return discover(user_folder=None)


@pytest.fixture(scope="module")
def backend():
    backend = ModelBackend.open(None, dtype="float32", device="cpu")
    backend.wait(lambda: False)
    return backend


@pytest.fixture
def studio(registry, backend):
    def open_model(name):
        if name != "default":
            raise CheckpointError(f"there is no directory {name}")
        return ModelBackend.open(None, dtype="float32", device="cpu")

    return Studio(
        registry, parse_spec("sample 0.8", registry), backend=backend, open_model=open_model, seed=7, max_tokens=40
    )


def write(studio, *requests):
    for _ in studio.write(requests, lambda: False):
        pass


def compare(studio, line):
    """Write the columns; return the numbers of their turns."""
    before = set(studio.tree.turns)
    write(studio, *execute(studio, line).requests)
    return sorted(set(studio.tree.turns) - before)


def run(studio, line):
    stream = io.StringIO()
    Screen(stream, color=False).show(*execute(studio, line).blocks)
    return " ".join(stream.getvalue().split())


def test_compare_goes_on_by_each_decoder_with_the_same_noise(studio):
    write(studio, studio.next_turn("Once upon a time"))
    reply = execute(studio, '/compare greedy; top-k 5|sampling 0.8 ;temperature "2" ;')
    assert reply.titles == ("greedy", "top-k 5 | sample 0.8", "temperature 2 | sample 1")
    assert {(request.parent, request.seed, request.number) for request in reply.requests} == {(1, 7, 0)}
    write(studio, *reply.requests)
    stored = [turn.written.spec for turn in studio.tree.children(1)]
    assert stored == ["greedy", "top-k 5 | sample 0.8", "temperature 2 | sample"]


def test_compare_alone_is_the_decoder_in_use_and_greedy(studio, registry):
    assert execute(studio, "/compare").titles == ("sample 0.8", "greedy")
    studio.decoder = parse_spec("greedy", registry)
    assert execute(studio, "/compare").titles == ("greedy", "sample 0.8")


def test_compare_writes_the_latest_turn_of_a_finished_story_once_more(studio):
    write(studio, studio.next_turn("Once upon a time"))
    turn = studio.tree.turn
    studio.tree.turns[1] = replace(turn, written=replace(turn.written, finish_reason="eos"))
    number, _ = compare(studio, "/compare sample 0.8 ; greedy")
    assert studio.tree.turns[number].parent == 0
    assert [token.id for token in studio.tree.turns[number].picked] == [token.id for token in turn.picked]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/compare greedy", "/compare takes from 2 to 8 decoders with `;` between them, not 1"),
        ("/compare" + " greedy ;" * 9, "not 9"),
        ("/compare greedy ; topk 3", "did you mean `top-k`?"),
        ('/compare greedy ; top-k "3', "a double quote is not closed"),
        ("/diff", "/diff takes the numbers of two turns"),
        ("/diff 1", "/diff takes the numbers of two turns"),
        ("/diff 1 9", "/diff takes a whole number from 1 to 1, not '9'"),
        ("/whatif", "/whatif takes a decoder"),
        ("/whatif topk 3", "did you mean `top-k`?"),
        ("/versus default", "/versus takes from 2 to 8 models, not 1"),
        ("/versus default nowhere", "there is no directory nowhere"),
    ],
)
def test_wrong_input_is_named_and_changes_nothing(studio, line, message):
    write(studio, studio.next_turn("Once upon a time"))
    before = copy.copy(studio)
    with pytest.raises(TinystoryError, match=re.escape(message)):
        execute(studio, line)
    assert studio == before


def test_diff_names_the_stage_that_parted_two_stories(studio):
    write(studio, studio.next_turn("Once upon a time, there was a"))
    one, other = compare(studio, "/compare sample ; top-k 2 | sample")
    shown = run(studio, f"/diff {one} {other}")
    assert re.search(r"they part after \d+ tokens: “….*”", shown)
    assert "why: top-k 2" in shown


def test_diff_of_two_seeds_says_so(studio):
    write(studio, studio.next_turn("Once upon a time"))
    studio.set_seed(8)
    write(studio, replace(studio.retry(), seed=8))
    assert "why: the seeds differ: 7 and 8" in run(studio, "/diff 1 2")


def test_diff_of_a_turn_and_one_that_began_within_it(studio, registry):
    """The prompts differ, but the tokens before the place where they part are the same."""
    write(studio, studio.next_turn("Once upon a time"))
    long = studio.tree.current
    first = studio.tree.turn
    studio.tree.undo()
    cut = replace(studio.begin("Once upon a time"), max_new_tokens=first.picked and 10)
    write(studio, cut)
    assert studio.tree.token_ids(2) == studio.tree.token_ids(1)[: len(studio.tree.token_ids(2))]
    studio.decoder = parse_spec("greedy", registry)
    write(studio, studio.next_turn(""))
    assert "why: " in run(studio, f"/diff {long} {studio.tree.current}")
    assert "not known" not in run(studio, f"/diff {long} {studio.tree.current}")


def test_diff_where_a_writer_typed_something_else(studio):
    write(studio, studio.next_turn("Once upon a time"))
    write(studio, studio.begin("Once upon a hill"))
    assert "that is where you typed or took something else" in run(studio, "/diff 1 2")


def test_diff_of_a_story_and_its_beginning(studio):
    write(studio, studio.next_turn("Once upon a time"))
    write(studio, studio.next_turn(""))
    assert run(studio, "/diff 2 1") == "they do not part: 1 is the beginning of 2"
    assert run(studio, "/diff 1 1") == "1 and 1 are the same story"


def test_whatif_needs_something_written(studio):
    with pytest.raises(UsageError, match="blank"):
        execute(studio, "/whatif greedy")
    studio.keep(studio.begin("Once"))
    with pytest.raises(UsageError, match="the model has written nothing here yet"):
        execute(studio, "/whatif greedy")


def test_versus_shows_models_side_by_side_and_leaves_the_tree(studio, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    write(studio, studio.next_turn("Once upon a time"))
    written, before = studio.text, dict(studio.tree.turns)
    reply = execute(studio, "/versus default default")
    stream, notices = io.StringIO(), []
    show_versus(Screen(stream, color=False), reply.titles, reply.versus, studio.opening(), notices.append)
    rows = [line.split(" │ ") for line in stream.getvalue().splitlines() if " │ " in line]
    left = " ".join(row[0].strip() for row in rows)
    assert left.startswith(f"default {' '.join(written.split())}")
    assert all(row[0].strip() == row[1].strip() for row in rows if "tokens/s" not in row[0])
    assert studio.tree.turns == before
    assert notices == ["loading default …"] * 2 + ["sample 0.8 · seed 7 · only shown: the tree has not changed"]


def test_versus_can_be_interrupted(studio):
    stream, notices = io.StringIO(), []
    reply = execute(studio, "/versus default default")
    for model in reply.versus:
        model.wait(lambda: False)
    show_versus(Screen(stream, color=False), reply.titles, reply.versus, studio.opening(lambda: True), notices.append)
    assert stream.getvalue().count("cancelled") == 2


def test_names_of_models_share_no_folder_in_the_titles(studio, backend):
    studio.open_model = lambda name: backend
    assert execute(studio, '/versus runs/a/last "runs/b c/best"').titles == ("a/last", "b c/best")
