"""The story tree and the studio: nothing is lost, and texts and caches fit the tokens."""

import inspect
import time
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinystory.decoding.plugins import discover
from tinystory.decoding.spec import parse_spec
from tinystory.errors import TinystoryError, UsageError
from tinystory.repl.commands import execute
from tinystory.story.branches import Branches
from tinystory.story.saved_chat import SavedChat
from tinystory.story.tree import ROOT, StoryTree, Turn, Written
from tinystory.studio.backend import ModelBackend
from tinystory.studio.seams import lengthened
from tinystory.studio.studio import Studio
from tinystory.studio.turn_request import TurnRequest
from tinystory.writing.generate import StoryRequest


def typed_turn(parent, kept, ids, own, shared=0):
    return Turn(
        id=0,
        parent=parent,
        kept=kept,
        typed=own,
        typed_ids=tuple(ids),
        written=None,
        vocabulary="v",
        shared=shared,
        own=own,
    )


@pytest.fixture
def tree():
    """1: abc, 2: abcd, 3: abx, 4: y."""
    tree = StoryTree()
    tree.add(typed_turn(ROOT, 0, [1, 2, 3], "abc"))
    tree.add(typed_turn(1, 3, [4], "d", 3))
    tree.add(typed_turn(1, 2, [5], "x", 2))
    tree.add(typed_turn(ROOT, 0, [6], "y"))
    return tree


def test_a_turn_keeps_a_part_of_its_parent(tree):
    assert [tree.text(n) for n in range(5)] == ["", "abc", "abcd", "abx", "y"]
    assert [tree.token_ids(n) for n in range(5)] == [(), (1, 2, 3), (1, 2, 3, 4), (1, 2, 5), (6,)]
    assert [tree.n_prompt(n) for n in range(5)] == [0, 3, 3, 2, 1]
    assert [token.turn for token in tree.path(3)] == [1, 1, 3]


@given(st.data())
@settings(deadline=None, max_examples=25)
def test_a_story_is_what_its_turns_keep_and_add(data):
    """The plain way, turn by turn from the first, copies a long text once for each turn that shares it."""
    tree = StoryTree()
    texts, ids = {ROOT: ""}, {ROOT: ()}
    for number in range(1, data.draw(st.integers(1, 6)) + 1):
        parent = data.draw(st.sampled_from(list(texts)))
        kept = data.draw(st.integers(0, len(ids[parent])))
        shared = data.draw(st.integers(0, len(texts[parent])))
        new_ids, own = data.draw(st.lists(st.integers(0, 9), max_size=3)), data.draw(st.text("ab", max_size=3))
        tree.add(typed_turn(parent, kept, new_ids, own, shared))
        texts[number], ids[number] = texts[parent][:shared] + own, (*ids[parent][:kept], *new_ids)
    for number in texts:
        assert tree.text(number) == texts[number]
        assert tree.token_ids(number) == tuple(token.id for token in tree.path(number)) == ids[number]
        if number:
            assert (tree.turns[number].n_characters, tree.turns[number].n_tokens) == (
                len(texts[number]),
                len(ids[number]),
            )


def test_thousands_of_turns_that_share_a_long_text_cost_its_length_once():
    """Once, such a session hung `/load`."""
    tree = StoryTree()
    n_characters, n_turns = 10**6, 5000
    tree.turns[1] = typed_turn(ROOT, 0, range(1000), "x" * n_characters)
    for number in range(2, n_turns + 1):
        tree.turns[number] = replace(typed_turn(number - 1, 1000, [], "", n_characters), id=number)
    started = time.process_time()
    assert len(tree.text(n_turns)) == n_characters
    assert len(tree.token_ids(n_turns)) == len(tree.path(n_turns)) == 1000
    assert time.process_time() - started < 0.3


def test_undo_and_redo_are_exact(tree):
    tree.goto(2)
    assert tree.undo() == 1
    assert tree.current == 1
    assert tree.undo(5) == 1
    assert tree.current == ROOT
    assert tree.undo() == 0
    assert tree.redo(9) == 2
    assert tree.current == 2
    assert tree.redo() == 0
    tree.goto(3)
    tree.undo(2)
    tree.redo(2)
    assert tree.current == 3


def test_branches_lie_side_by_side(tree):
    tree.goto(2)
    assert Branches(tree).aside(-1) is None
    assert Branches(tree).aside(1) is None
    tree.goto(3)
    assert Branches(tree).aside(-1).id == 1  # turn 3 changes the end of turn 1
    assert Branches(tree).aside(1).id == 4
    assert hung(tree) == [(1, 0), (2, 1), (3, 0), (4, 0)]


def hung(tree):
    """Return the number and the depth of each turn, in the order of the picture."""
    branches = Branches(tree)

    def below(number, depth):
        for group in branches.groups(number):
            for turn in group.turns:
                yield turn.id, depth
                yield from below(turn.id, depth + 1)

    return list(below(ROOT, 0))


def test_turns_that_were_promised_their_numbers_come_in_any_order(tree):
    """The columns of /compare show their numbers before the first one has ended."""
    assert tree.next_number == 5
    for number in (7, 5):
        assert tree.add(typed_turn(4, 1, [number], "z", 1), number).id == number
    assert list(tree.turns) == [1, 2, 3, 4, 5, 7]
    assert tree.add(typed_turn(4, 1, [8], "z", 1)).id == 8


@pytest.mark.parametrize(
    "wrong",
    [typed_turn(9, 0, [], ""), typed_turn(1, 4, [], ""), typed_turn(1, 0, [], "", 4), typed_turn(1, -1, [], "")],
)
def test_a_turn_that_does_not_fit_is_refused_and_changes_nothing(tree, wrong):
    with pytest.raises(UsageError):
        tree.add(wrong)
    assert (len(tree.turns), tree.current) == (4, 4)
    with pytest.raises(UsageError, match="they go from 0, the blank page, to 4"):
        tree.goto(5)


@pytest.fixture(scope="module")
def backend(checkpoint):
    backend = ModelBackend.open(str(checkpoint), "float32", "cpu")
    assert backend.wait(lambda: False)
    return backend


@pytest.fixture
def studio(backend):
    registry = discover(user_folder=None)

    def stay(name):
        raise UsageError(name)

    return Studio(registry, parse_spec("sample 0.8", registry), backend=backend, open_model=stay, seed=5, max_tokens=6)


def write(studio, *requests):
    for _ in studio.write([request for request in requests if request], lambda: False):
        pass


words = st.text("abcé .", min_size=1, max_size=8)
numbers = st.integers(0, 30)
steps = st.one_of(
    st.tuples(st.sampled_from(["new", "type"]), words),
    st.tuples(st.sampled_from(["go", "more", "undo", "redo", "goto", "pick", "cut"]), numbers),
    st.tuples(st.sampled_from(["retry", "trim"]), st.none()),
    st.tuples(st.just("edit"), st.tuples(numbers, words)),
)


def take(studio, name, value):
    """Do one step of a writer; an impossible one is refused."""
    tree = studio.tree
    if name == "new":
        write(studio, studio.begin(value))
    elif name == "type":
        write(studio, studio.next_turn(value))
    elif name == "go":
        write(studio, studio.go(value % 7 + 1))
    elif name == "retry":
        write(studio, studio.retry())
    elif name == "more":
        write(studio, *studio.more(value % 3 + 1))
    elif name == "undo":
        tree.undo(value % 3 + 1)
    elif name == "redo":
        tree.redo(value % 3 + 1)
    elif name == "goto":
        tree.goto(value)
    elif name == "trim":
        studio.trim()
    elif name == "pick":
        if len(studio.token_ids) > 1:
            write(studio, studio.pick(value % (len(studio.token_ids) - 1) + 1, 40 + value))
    else:
        place, added = (value, "") if name == "cut" else value
        write(studio, studio.edit(studio.text[:place] + added))


@settings(deadline=None, max_examples=40)
@given(st.lists(steps, max_size=8))
def test_whatever_the_writer_does_every_text_is_that_of_its_tokens_and_the_cache_is_right(backend, script):
    registry = discover(user_folder=None)
    studio = Studio(
        registry,
        parse_spec("sample 0.8", registry),
        backend=backend,
        open_model=lambda name: backend,
        seed=5,
        max_tokens=6,
    )
    seen = {}
    for name, value in script:
        try:
            take(studio, name, value)
        except UsageError:
            continue
        tree = studio.tree
        assert sorted(number for number, _ in hung(tree)) == list(tree.turns) >= sorted(seen)
        for number in tree.turns:
            text, ids = tree.text(number), tree.token_ids(number)
            assert text == backend.detokenize(ids)
            assert seen.setdefault(number, (text, ids)) == (text, ids)
    session = backend._loaded.session
    for row in range(len(session._cache.rows)):
        fresh = session.open()
        fresh.prefill([session._cache.rows[row]])
        n = len(session._cache.rows[row])
        for ours, theirs in zip(session._cache.layers(), fresh._cache.layers(), strict=True):
            for mine, anew in zip(ours, theirs, strict=True):
                torch.testing.assert_close(mine[row, :, :n], anew[0, :, :n], atol=1e-4, rtol=0)


def test_a_word_cut_by_an_edit_is_healed(studio):
    studio.backend = ModelBackend.open(None, "float32", "cpu")
    assert studio.backend.wait(lambda: False)
    studio.decoder = parse_spec("greedy", studio.registry)
    request = studio.edit("Once upon a ti")
    assert request.heal
    write(studio, request)
    assert studio.text.startswith("Once upon a time")
    whole = studio.backend.encode("Once upon a time", bos=True)
    assert list(studio.token_ids[: len(whole)]) == whole


def test_a_healed_turn_that_is_stopped_at_once_keeps_what_was_typed(studio):
    write(studio, studio.begin("Once"))
    request = studio.edit(studio.text[:-1])
    for _ in studio.write([request], lambda: True):
        pass
    assert studio.text == studio.tree.text(1)[:-1]


def test_an_edit_keeps_the_tokens_before_it(studio):
    write(studio, studio.begin("Once upon a time, Zoë found a kite."))
    before = studio.token_ids
    request = studio.edit(studio.text[:20] + "!")
    assert request.kept > 3
    story_request = studio.story_request(request)
    assert (*before[: request.kept], *request.typed_ids) == story_request.prompt_ids
    assert story_request.prompt + request.heal == studio.text[:20] + "!"


@settings(deadline=None, max_examples=200)
@given(st.text("ab é.", max_size=20), st.text("ab é.", max_size=20))
def test_tokens_for_a_longer_text_say_just_that_text(backend, text, longer):
    ids = backend.encode(text, bos=True)
    kept, new = lengthened(backend, ids, longer)
    assert backend.detokenize([*ids[:kept], *new]) == longer


def test_a_stage_that_fails_at_once_leaves_the_tree_as_it_was(studio, monkeypatch):
    write(studio, studio.begin("Once"))

    def fail(requests):
        raise TinystoryError("no")
        yield

    monkeypatch.setattr(studio.backend, "write", fail)
    with pytest.raises(TinystoryError):
        write(studio, *studio.more(3))
    assert (len(studio.tree.turns), studio.tree.current) == (1, 1)
    with pytest.raises(TinystoryError):
        write(studio, studio.begin("Another"))
    assert studio.text == "Another"
    monkeypatch.undo()


def test_a_very_long_story_of_another_vocabulary_is_not_tokenised(studio):
    """A session of somebody else may have megabytes, which would be tokenised for minutes."""
    studio.tree.add(typed_turn(ROOT, 0, [1], "word " * 250_000))
    started = time.process_time()
    for ask in (studio.trim, lambda: studio.next_turn("more"), lambda: studio.begin("word " * 250_000)):
        with pytest.raises(UsageError, match="too long"):
            ask()
    assert time.process_time() - started < 1


def test_a_turn_in_another_vocabulary_is_not_tried_again(studio):
    write(studio, studio.begin("Once"))
    studio.tree.turns[1] = replace(studio.tree.turns[1], vocabulary="another")
    with pytest.raises(UsageError, match="in another vocabulary"):
        studio.retry()


def test_a_tree_of_a_thousand_turns_is_drawn_at_once(studio):
    for number in range(1000):
        studio.tree.add(typed_turn(number, 0, [1], "x"))
    started = time.process_time()
    [outline] = execute(studio, "/tree all").blocks
    assert len(outline.rows) == 1000
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    "line", ["/export \0.txt", "/export ~nosuch/x.txt", "/ppl \0", f"/export /tmp/{'a' * 300}.txt"]
)
def test_file_names_that_no_system_takes_are_one_line(studio, line):
    write(studio, studio.begin("Once"))
    with pytest.raises(TinystoryError):
        execute(studio, line)


@pytest.mark.parametrize(
    ("kind", "n_positional"),
    [(Written, 0), (Turn, 0), (TurnRequest, 0), (SavedChat, 0), (StoryRequest, 2), (Studio, 2)],
)
def test_long_constructors_take_keywords(kind, n_positional):
    """With eleven values in a row, two that change places are never found."""
    parameters = list(inspect.signature(kind).parameters.values())
    positional = [parameter for parameter in parameters if parameter.kind is not parameter.KEYWORD_ONLY]
    assert len(parameters) > 8
    assert len(positional) == n_positional
