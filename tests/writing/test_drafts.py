"""Drafts: their text fits the text before them, and the line of the screen is replaced."""

import io
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prompt_toolkit.utils import get_cwidth

from tinystory.decoding.plugins import discover
from tinystory.decoding.spec import parse_spec
from tinystory.screen.blocks import Line
from tinystory.screen.screen import Screen
from tinystory.session.loading import load
from tinystory.text.tokenizer import Detokenizer
from tinystory.writing.generate import DraftText, Ended, StoryRequest, Text, write

REGISTRY = discover(user_folder=None)


@pytest.fixture(scope="module")
def model(checkpoint):
    return load(str(checkpoint))


@given(ids=st.lists(st.integers(0, 299), max_size=30), n=st.integers(0, 30))
@settings(deadline=None, max_examples=50)
def test_peeking_is_adding_without_adding(tokenizer, ids, n):
    detokenizer, other = Detokenizer(tokenizer, ids[:n]), Detokenizer(tokenizer, ids[:n])
    assert detokenizer.peek(ids[n:]) == "".join(map(other.add, ids[n:]))
    assert [detokenizer.add(i) for i in ids[n:]] + [detokenizer.finish()] == [
        *map(Detokenizer(tokenizer, ids[:n]).add, ids[n:]),
        other.finish(),
    ]


@pytest.mark.parametrize("spec", ["beam 3", "top-k 30 | sample | best-of 3", "diverse-beam", "contrastive"])
@pytest.mark.parametrize("stop", [(), ("e",)])
def test_every_search_streams_through_the_text_layer(model, spec, stop):
    """Two stories each; drafts never reach past a stop text, and the text is that of the tokens."""
    decoder = parse_spec(spec, REGISTRY)
    requests = [
        StoryRequest("Tim", decoder, seed=5, max_new_tokens=20, number=number, stop=stop) for number in range(2)
    ]
    text = ["", ""]
    for event in write(model.session, model.tokenizer, requests):
        if isinstance(event, Text):
            text[event.story] += event.text
        elif isinstance(event, DraftText):
            assert not any(end in event.text for end in stop)
        elif isinstance(event, Ended):
            story = event.result
            assert text[event.story] == story.completion
            whole = model.tokenizer.detokenize(story.token_ids)
            assert story.completion == whole.split("e")[0] if stop else whole
            assert story.finish_reason in ("eos", "length", "stop")
            # The token that completes the stop text is the last one.
            assert not stop or "e" not in model.tokenizer.detokenize(story.token_ids[:-1])


@pytest.fixture
def shown(monkeypatch):
    """Give a function that returns what a terminal of 40 columns receives."""
    monkeypatch.setenv("COLUMNS", "40")

    def show(*steps, color=True):
        stream = io.StringIO()
        screen = Screen(stream, color=color)
        for method, text in steps:
            getattr(screen, method)(text)
        return stream.getvalue()

    return show


DIM, RESET = "\x1b[2m", "\x1b[0m"


def test_a_draft_is_dim_and_replaced(shown):
    first, second = f"\x1b7{DIM} a dog{RESET}\x1b8", f"\x1b7{DIM} two cats{RESET}\x1b8"
    steps = [("story", "Once"), ("draft", " a dog"), ("draft", " two cats"), ("story", " two"), ("story", ".")]
    assert shown(*steps) == f"Once{first}\x1b[K{second}\x1b[K two."
    assert shown(("draft", " a dog"), ("draft", ""), ("story", "x")) == f"{first}\x1b[Kx"
    assert shown(("story", "Once"), ("draft", " a dog"), ("show", Line("end"))) == (f"Once{first}\x1b[K\nend\n")


def test_a_draft_begins_with_the_word_that_waits_near_the_edge(shown):
    """The word is a guess's first until it is known to fit; then it stands where the draft showed it, or below."""
    story = ("story", "The little owl sat in")
    first, second = f"\x1b7{DIM} the big tree{RESET}\x1b8", f"\x1b7{DIM} oak again{RESET}\x1b8"
    steps = [story, ("story", " the"), ("draft", " big tree"), ("story", " oak"), ("draft", " again")]
    assert shown(*steps) == f"The little owl sat in{first}\x1b[K the{second}"
    assert shown(*steps, ("show", Line("end"))) == f"The little owl sat in{first}\x1b[K the{second}\x1b[K oak\nend\n"
    # The word that a draft completes does not fit, and the line ends before it.
    steps = [("story", "The little old owl sat in the"), ("story", " mead"), ("draft", "owl"), ("story", "owlands,")]
    assert shown(*steps, ("story", " and")) == (
        f"The little old owl sat in the\x1b7{DIM} meadowl{RESET}\x1b8\x1b[K\nmeadowlands, and"
    )


def test_without_colour_there_is_no_draft(shown):
    assert shown(("story", "Once"), ("draft", " a dog"), ("story", " a"), color=False) == "Once a"


@pytest.mark.parametrize("column", [0, 1, 7, *range(28, 43), 79, 80, 81])
@pytest.mark.parametrize("text", ["a", "x" * 90, "so the dog ran and " * 8, "猫" * 60, "one\ntwo \x1b[2J" * 9])
def test_a_draft_stays_on_its_line(shown, column, text):
    sent = shown(("story", "s" * column), ("draft", text))[column:]
    if not sent:
        assert column % 40 == 0 or column % 40 > 30
        return
    match = re.fullmatch(rf"\x1b7{re.escape(DIM)}(.*){re.escape(RESET)}\x1b8", sent, re.DOTALL)
    assert match
    assert "\n" not in match[1]
    assert "\x1b" not in match[1]
    assert 0 < column % 40 + get_cwidth(match[1]) < 40


def test_a_long_draft_shows_how_it_begins_and_where_it_is(shown):
    sent = shown(("draft", " there was a little girl named Lily. She loved to play in the sun"))
    assert sent == f"\x1b7{DIM} there was a little girl na… in the sun{RESET}\x1b8"
