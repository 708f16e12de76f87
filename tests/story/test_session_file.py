"""Session files: what is saved is read again, and every other content is one error."""

import json
import math
import os
import random
import signal
import stat
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinystory.decoding import Token
from tinystory.errors import SessionError
from tinystory.story.saved_chat import SavedChat, Summary
from tinystory.story.session_file import MAX_BYTES, decode, encode, load_session, read_summary, save_session
from tinystory.story.session_json import SCHEMA
from tinystory.story.tree import ROOT, StoryTree, Turn, Written

IDS = st.lists(st.integers(0, 2**31 - 1), max_size=4).map(tuple)
TEXT = st.text(max_size=12)
TEXTS = st.lists(st.text(min_size=1, max_size=5), max_size=3).map(tuple)


@st.composite
def tokens(draw):
    logprob = draw(st.one_of(st.floats(-200, 0), st.just(-math.inf)))
    entropy = draw(st.one_of(st.floats(0, 16), st.just(math.nan)))
    entropy = entropy if math.isnan(entropy) else round(entropy, 4)
    logprob = logprob if math.isinf(logprob) else round(logprob, 6)
    return Token(draw(st.integers(0, 2**31 - 1)), logprob, draw(st.integers(-1, 60000)), entropy)


@st.composite
def writtens(draw):
    return Written(
        spec=draw(TEXT),
        seed=draw(st.integers(-(10**39), 10**39)),
        number=draw(st.integers(0, 63)),
        model=draw(TEXT),
        model_hash=draw(TEXT),
        dtype="float32",
        max_new_tokens=draw(st.integers(0, 10**6)),
        stop=draw(TEXTS),
        heal=draw(TEXT),
        tokens=tuple(draw(st.lists(tokens(), max_size=4))),
        finish_reason=draw(st.sampled_from(["eos", "length", "stop", "cancelled"])),
    )


@st.composite
def trees(draw):
    tree = StoryTree()
    for _ in range(draw(st.integers(0, 6))):
        parent = draw(st.sampled_from([ROOT, *tree.turns]))
        written = draw(st.none() | writtens())
        turn = Turn(
            id=0,
            parent=parent,
            kept=draw(st.integers(0, len(tree.token_ids(parent)))),
            typed=draw(TEXT),
            typed_ids=draw(IDS),
            written=written,
            vocabulary=draw(TEXT),
            shared=draw(st.integers(0, len(tree.text(parent)))),
            own=draw(TEXT),
            hidden=draw(st.integers(0, len(written.tokens) if written else 0)),
            tail_ids=draw(IDS),
        )
        tree.add(turn)
        if draw(st.booleans()):
            tree.undo(draw(st.integers(0, 3)))
    return tree


@st.composite
def sessions(draw):
    return SavedChat(
        tree=draw(trees()),
        spec=draw(TEXT),
        seed=draw(st.none() | st.integers(0, 10**12)),
        max_tokens=draw(st.integers(1, 10**7)),
        stop=draw(TEXTS),
        words=draw(TEXTS),
        tint=draw(TEXT),
        model=draw(TEXT),
        model_hash=draw(TEXT),
        dtype="float32",
        automatic=draw(st.booleans()),
        created="2026-11-23T10:00:00+00:00",
        changed="2026-11-23T10:00:01+00:00",
    )


def small_session():
    tree = StoryTree()
    token = Token(5, -1.25, 2, 3.5)
    written = Written(
        spec="sample",
        seed=1,
        number=0,
        model="default",
        model_hash="ab",
        dtype="float32",
        max_new_tokens=9,
        stop=("!",),
        heal="",
        tokens=(token, Token(6, -0.5)),
        finish_reason="length",
    )
    tree.add(
        Turn(
            id=0,
            parent=ROOT,
            kept=0,
            typed="Once",
            typed_ids=(1, 2),
            written=written,
            vocabulary="v",
            shared=0,
            own="Once upon a",
        )
    )
    tree.add(Turn(id=0, parent=1, kept=3, typed="b", typed_ids=(7,), written=None, vocabulary="v", shared=4, own=" b"))
    tree.undo()
    return SavedChat(tree=tree, spec="sample", created="then", changed="now")


@settings(max_examples=150, deadline=None)
@given(sessions())
def test_any_session_comes_back_as_it_was(session):
    # NaN is not equal to itself, so it is the text of both that is compared.
    assert repr(decode(json.loads(encode(session)), "here")) == repr(session)


def test_a_session_survives_the_disk_where_only_its_owner_reads_it(tmp_path):
    path = tmp_path / "sessions" / "a.json"
    save_session(path, small_session())
    assert repr(load_session(path)) == repr(small_session())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert os.listdir(path.parent) == ["a.json"]
    assert read_summary(path) == Summary(1, 2, "Once upon a")


def test_the_summary_of_a_file_that_was_laid_out_anew_is_counted(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(json.loads(encode(small_session())), indent=2))
    assert read_summary(path) == Summary(1, 2, "Once upon a")


def places(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


FIELDS = json.loads(encode(small_session()))
ODD = st.sampled_from(
    [None, True, -1, 0, 10**30, 1.5, math.nan, math.inf, "", "x", "\ud800", [], [1], {}, {"a": 1}, [[]]]
)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(list(places(FIELDS))), ODD, st.booleans())
def test_a_field_of_another_kind_is_one_error_or_none(place, odd, delete):
    fields = json.loads(json.dumps(FIELDS))
    if not place:
        fields = odd
    else:
        inner = fields
        for key in place[:-1]:
            inner = inner[key]
        if delete:
            del inner[place[-1]]
        else:
            inner[place[-1]] = odd
    said, session = [], None
    try:
        session = decode(fields, "here")
    except SessionError as error:
        said = str(error).splitlines()
    assert len(said) == (session is None)
    if session is not None:
        for number in session.tree.turns:
            assert len(session.tree.path(number)) >= session.tree.n_prompt(number)
        encode(session)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_flipped_or_missing_bytes_are_one_error_or_none(tmp_path, data):
    content = bytearray(encode(small_session()))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "a.json"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    lines = []
    for read in (load_session, read_summary):
        try:
            read(path)
        except SessionError as error:
            lines.append(str(error).splitlines())
    assert all(len(said) == 1 for said in lines)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"nodes": []}, "current is turn 1, and the file has no such turn"),
        ({"latest": [[0, 2]]}, "latest says that turn 2 goes on from turn 0"),
        ({"max_tokens": 0}, "max_tokens must be a whole number from 1 to 10000000, not 0"),
        ({"nodes": [{**FIELDS["nodes"][0], "parent": 1}]}, "goes on from turn 1, which does not stand before it"),
        ({"nodes": [{**FIELDS["nodes"][0], "kept": 1}]}, "keeps more of turn 0 than that turn has"),
        ({"nodes": [FIELDS["nodes"][0]] * 2}, "turn 1 stands twice"),
        ({"nodes": [{**FIELDS["nodes"][0], "hidden": 3}]}, "nodes[0].hidden must be a whole number from 0 to 2"),
        ({"spec": 3}, "spec must be text, not 3"),
        ({"stop": ["a"] * 100_000}, "stop must be at most 1,000 texts with 20,000 characters together"),
        ({"stop": ["a" * 60_000] * 3}, "stop must be at most 1,000 texts"),
        ({"spec": "top-k 5 | " * 10**5}, "spec must be text of at most 20,000 characters"),
        ({"words": ["a" * 60_000]}, "words must be at most 1,000 texts"),
    ],
)
def test_a_damaged_file_says_which_field(change, said):
    with pytest.raises(SessionError) as caught:
        decode(FIELDS | change, "here")
    assert said in str(caught.value)
    assert len(str(caught.value)) < 400
    assert caught.value.damaged
    assert caught.value.exit_code == 3


def test_a_newer_file_is_not_called_damaged():
    with pytest.raises(SessionError, match="from a newer tinystory") as caught:
        decode(FIELDS | {"schema": SCHEMA + 1, "nodes": "something else"}, "here")
    assert not caught.value.damaged


def test_a_byte_order_mark_is_no_damage(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + encode(small_session()))
    assert repr(load_session(tmp_path / "a.json")) == repr(small_session())
    assert read_summary(tmp_path / "a.json") == Summary(1, 2, "Once upon a")


def test_a_huge_file_is_refused_unread(tmp_path):
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(SessionError, match="at most 67108864"):
        load_session(path)


def test_a_session_that_could_not_be_read_again_is_not_written(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    save_session(path, small_session())
    before = path.read_bytes()
    monkeypatch.setattr("tinystory.story.session_file.MAX_BYTES", 100)
    with pytest.raises(SessionError, match="too large for a file"):
        save_session(path, small_session())
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", ["folder", "missing", "pipe"])
def test_what_is_no_file_is_one_line(tmp_path, kind):
    path = tmp_path / "a.json"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(SessionError) as caught:
        load_session(path)
    assert not caught.value.damaged
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.slow
def test_sigkill_at_twenty_moments_leaves_every_turn_but_the_one_being_saved(tmp_path):
    """Forks add turns and save after each; a pipe tells the parent which ones were done."""
    rng = random.Random(3)
    path = tmp_path / "sessions" / "killed.json"
    session = small_session()
    session.tree.redo()
    save_session(path, session)
    for _ in range(20):
        session = load_session(path)
        n_before = len(session.tree.turns)
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                cache = {}
                while True:
                    session.tree.add(
                        Turn(
                            id=0,
                            parent=session.tree.current,
                            kept=0,
                            typed="more",
                            typed_ids=(1,) * 50,
                            written=None,
                            vocabulary="v",
                            shared=0,
                            own="more " * 20,
                        )
                    )
                    save_session(path, session, cache)
                    os.write(writing, b"x")
            finally:
                os._exit(1)
        os.close(writing)
        time.sleep(rng.uniform(0.002, 0.05))
        os.kill(pid, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        n_saved = 0
        while piece := os.read(reading, 4096):
            n_saved += len(piece)
        os.close(reading)
        # Between the replaced file and the word of it lies a moment, too.
        assert len(load_session(path).tree.turns) - n_before - n_saved in (0, 1)
    assert len(load_session(path).tree.turns) > 2
