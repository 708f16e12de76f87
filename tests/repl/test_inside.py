"""The command /inside, with the shipped model."""

import io
import re

import pytest

from tinystory.checkpoint.load import load_model
from tinystory.checkpoint.shipped import find_model
from tinystory.decoding.plugins import discover
from tinystory.decoding.spec import parse_spec
from tinystory.errors import UsageError
from tinystory.inside.forward_pass import forward_pass
from tinystory.inside.heads import gaze
from tinystory.inside.layers import guesses
from tinystory.repl.commands import execute
from tinystory.screen.blocks import Spans
from tinystory.screen.screen import Screen
from tinystory.studio.backend import ModelBackend
from tinystory.studio.recall import desk_ids, token_name
from tinystory.studio.studio import Studio


@pytest.fixture(scope="module")
def backend():
    backend = ModelBackend.open(None, dtype="float32", device="cpu")
    backend.wait(lambda: False)
    return backend


@pytest.fixture(scope="module")
def studio(backend):
    """A studio with a story on the desk: 9 typed tokens and 12 that the model wrote."""
    registry = discover(user_folder=None)
    studio = Studio(
        registry,
        parse_spec("greedy", registry),
        backend=backend,
        open_model=lambda name: backend,
        seed=7,
        max_tokens=12,
    )
    for _ in studio.write((studio.next_turn("Once upon a time, there was a little"),), lambda: False):
        pass
    return studio


@pytest.fixture(scope="module")
def run(studio):
    return forward_pass(load_model(find_model(None)[1]), desk_ids(studio))


def blocks_of(studio, line):
    return execute(studio, line).blocks


def text_of(studio, line):
    stream = io.StringIO()
    Screen(stream, color=False).show(*blocks_of(studio, line))
    return stream.getvalue()


def test_a_row_for_each_layer_with_the_token_of_the_story(studio, run):
    text = text_of(studio, "/inside 10")
    layers = guesses(run, 10, 1)
    assert len(re.findall(r"^(embeddings|layer \d)[^:]* taken: ", text, re.MULTILINE)) == 7
    assert f"layer 6 (the model)  taken: {layers[-1].taken:.1%}, place {layers[-1].taken_rank}" in text
    assert re.search(r"is the likeliest from (its embeddings alone|layer \d) on", text)
    assert token_name(studio, layers[-1].likeliest[0][0]) in text


def test_what_comes_next_has_no_token_of_the_story(studio):
    assert "taken" not in text_of(studio, "/inside")
    assert text_of(studio, "/inside") == text_of(studio, "/inside next")


@pytest.mark.parametrize(("view", "layer", "head"), [("", None, None), (" 4", 3, None), (" 4.2", 3, 1)])
def test_the_words_are_tinted_by_the_weight_of_the_heads(studio, run, view, layer, head):
    blocks = blocks_of(studio, f"/inside 15{view}")
    words = next(block for block in blocks if isinstance(block, Spans))
    ids = desk_ids(studio)[:15]
    assert "".join(text for text, _ in words.pieces) == studio.backend.detokenize(ids)
    shares = gaze(run, 15, bos_id=ids[0]).words(layer, head)
    hottest = [style for _, style in words.pieces]
    assert hottest[int(shares.argmax()) - 1] != "dim"  # BOS has no text
    for (_, style), share in zip(words.pieces, shares[1:].tolist(), strict=True):
        assert (style == "dim") == (share < 0.02)


def test_heads_are_listed_for_all_layers_or_for_one(studio):
    assert len(re.findall(r"^layer \d +1: .* 2: .* 3: ", text_of(studio, "/inside 15"), re.MULTILINE)) == 6
    one = text_of(studio, "/inside 15 4")
    assert re.findall(r"^layer (\d) +1: ", one, re.MULTILINE) == ["4"]
    assert re.search(r"\d+% of the weight goes to BOS", one)


def test_parts_say_how_many_bits_the_token_loses(studio):
    from tinystory.inside.removal import effects

    text = text_of(studio, "/inside -1 parts")
    story = desk_ids(studio)
    found = list(effects(load_model(find_model(None)[1]), story[:-1], story[-1]))
    shown = [float(bits) for bits in re.findall(r"(?:\d|attention|feed-forward) ([+-]\d+\.\d)(?!\d)", text)]
    assert shown == [round(effect.bits, 1) for effect in found]
    worst = max(found, key=lambda effect: effect.bits)
    assert f"without {worst.part}, {token_name(studio, story[-1])} is" in " ".join(text.split())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/inside 99", "POS is from 1 to"),
        ("/inside x", "POS is from 1 to"),
        ("/inside 3 9", "no layer 9; the model has 6"),
        ("/inside 3 2.4", "no head 4; the model has 3"),
        ("/inside 3 0", "a layer like 3, a head like 3.2, or parts"),
        ("/inside 3 2.1.1", "a layer like 3"),
        ("/inside next parts", "asks about a token of the story"),
    ],
)
def test_what_does_not_exist_is_refused(studio, line, message):
    with pytest.raises(UsageError, match=message):
        execute(studio, line)


def test_a_story_longer_than_the_context_is_cut_as_the_loop_cuts_it(studio, monkeypatch):
    backend = studio.backend
    monkeypatch.setattr(backend._loaded.session, "max_seq_len", 16)
    lengths = []

    def run(token_ids, own=backend.inspector.run):
        lengths.append(len(token_ids))
        return own(token_ids)

    monkeypatch.setattr(backend.inspector, "run", run)
    assert "layer 6" in text_of(studio, "/inside -1")
    assert 8 <= lengths[0] <= 16
