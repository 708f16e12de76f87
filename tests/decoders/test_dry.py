"""DRY: equal to a search of the whole story for every suffix, checked by hand, and the contract."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinystory.decoding import Decoder, Request, Step
from tinystory.decoding.plugins import discover
from tinystory.decoding.spec import format_spec, parse_spec
from tinystory.errors import UsageError
from tinystory.testing import ToyVocabulary, conformance
from tinystory_decoders.dry import Dry
from tinystory_decoders.sample import Sample

VOCABULARY = ToyVocabulary(7)  # "", "", " ", ".", ",", "a", "b"


def penalties(stage, ids, n_prompt=1):
    request = Request(tuple(ids[:n_prompt]), 9, 1, vocabulary=VOCABULARY)
    state = stage.start(request)
    for token_id in ids[n_prompt:]:
        state = stage.observe(state, token_id, torch.zeros(7))
    return (-stage(torch.zeros(7), Step(request, ids, frozenset(), state))).tolist()


def reference(stage, ids):
    """Try every suffix at every place, after the last token that completes a breaker in the text."""
    text, ends, completing = "", [], set()
    for n, token_id in enumerate(ids):
        text += VOCABULARY.pieces[token_id]
        ends.append(len(text))
        if any(ends[n - 1] * (n > 0) < i + len(b) <= ends[n] for b in stage.breakers for i in places(b, text)):
            completing.add(n)
    free = ids[max(completing, default=-1) + 1 :]
    longest = {}
    for end in range(1, len(ids)):
        for length in range(stage.allowed, min(end, len(free)) + 1):
            if ids[end - length : end] == ids[len(ids) - length :]:
                longest[ids[end]] = max(length, longest.get(ids[end], 0))
    nats = [stage.multiplier * stage.base ** (longest.get(i, 0) - stage.allowed) for i in range(7)]
    return [0.0 if i not in longest or breaks(stage, text, text + VOCABULARY.pieces[i]) else nats[i] for i in range(7)]


def places(part, text):
    return [i for i in range(len(text)) if text.startswith(part, i)]


def breaks(stage, text, longer):
    return any(i + len(b) > len(text) for b in stage.breakers for i in places(b, longer))


stages = st.builds(
    Dry,
    st.sampled_from([0.8, 2.0]),
    st.sampled_from([1.0, 1.75, 3.0]),
    st.integers(1, 4),
    st.sampled_from([(), (".",), (",", "a"), ("ab",), ("a. b", ","), ("aa", "aba"), (" b", ".b.", "a b a")]),
)


@given(stages, st.lists(st.integers(2, 6), min_size=1, max_size=30), st.data())
@settings(deadline=None, max_examples=200)
def test_every_repetition_is_found(stage, ids, data):
    n_prompt = data.draw(st.integers(1, len(ids)))
    assert penalties(stage, ids, n_prompt) == pytest.approx(reference(stage, ids), rel=1e-5)


@pytest.mark.parametrize(
    ("text", "token", "nats"),
    [
        ("ab ab", " ", 0.8),
        ("ab ab ab", " ", 0.8 * 1.75**3),  # "ab ab" stood before
        ("ab.ab", ".", 0.0),  # no breaker is penalised
        ("a b.a b", " ", 0.0),
        ("aaaa", "a", 0.8 * 1.75),
        ("ba", "b", 0.0),
    ],
)
def test_by_hand(text, token, nats):
    ids = VOCABULARY.encode(text, bos=False)
    token_id = VOCABULARY.pieces.index(token, 2)
    assert penalties(Dry(breakers=(".",)), ids)[token_id] == pytest.approx(nats)


class Spelled:
    """A vocabulary of given byte strings; a part of a character is U+FFFD, as in `Tokenizer.pieces`."""

    def __init__(self, *tokens):
        self.raw = [token.encode() if isinstance(token, str) else token for token in tokens]
        self.pieces = tuple(raw.decode(errors="replace") for raw in self.raw)

    def encode(self, text, *, bos=True):
        raise NotImplementedError

    def detokenize(self, token_ids):
        return b"".join(self.raw[i] for i in token_ids).decode(errors="replace")


E_ACUTE, DASH = "é".encode(), "—".encode()


@pytest.mark.parametrize(
    ("tokens", "breaker", "resets"),
    [
        (["The", " end", ".", "x"], "The end.", [0, 0, 1, 0]),
        (["The", " end", ".\n", "x"], "The end.", [0, 0, 1, 0]),  # it ends inside of a token
        (["In The", " end", ".", "x"], "The end.", [0, 0, 1, 0]),  # it begins inside of a token
        (["x The end. y", "x"], "The end.", [1, 0]),  # inside of one token
        (["x", "a\nb", "x"], "\n", [0, 1, 0]),
        (["The", " end", "x", "."], "The end.", [0, 0, 0, 0]),
        (["The", "", " end", "", ".", ""], "The end.", [0, 0, 0, 0, 1, 0]),  # special tokens have no text
        (["aa", "a", "a"], "aa", [1, 1, 1]),
        (["ab", "a", "b", "a"], "aba", [0, 1, 0, 1]),  # they overlap
        ([E_ACUTE[:1], E_ACUTE[1:], "x"], "é", [0, 1, 0]),
        (["x" + "é", "é"], "éé", [0, 1]),
        ([b"x" + DASH[:1], DASH[1:2], DASH[2:] + b"y", "x"], "—", [0, 0, 1, 0]),
        ([b"\n" + DASH[:1], DASH[1:], "x"], "\n", [1, 0, 0]),  # the newline counts before the dash is complete
        ([b"\n" + DASH[:1], DASH[1:], "x"], "\n—x", [0, 0, 1]),
        ([DASH[:1], "\n", "x"], "\n", [0, 1, 0]),  # a character that is never completed
        ([b"\x80"] * 5 + ["\n"], "\n", [0] * 5 + [1]),
        ([b"\xf0", b"\x9f", "", b"\x98", b"\x80"], "😀", [0] * 4 + [1]),  # a special token inside of it
        ([b"\xf7", b"\xc8", b"\xf0", b"\x9f", b"\x98", b"\x80"], "😀", [0] * 5 + [1]),  # broken bytes before it
    ],
)
def test_a_breaker_is_found_in_the_text_of_any_tokens(tokens, breaker, resets):
    stage, found = Dry(breakers=(breaker,)), []
    state = stage.start(Request((0,), 9, 1, vocabulary=Spelled("", *tokens)))
    for token_id in range(1, len(tokens) + 1):
        found.append(int(state.breaks_with(token_id)))
        state = stage.observe(state, token_id, None)
    assert found == resets


def test_a_breaker_of_several_tokens_ends_a_repetition():
    """The example of the docs: a sentence that ends each chapter is no repetition."""
    vocabulary = Spelled("", "The", " end", ".", " He", " ran")
    chapter = [1, 2, 3, 4, 5]
    request = Request((0, *chapter, *chapter[:-1]), 9, 1, vocabulary=vocabulary)

    def cost(breakers):
        stage = Dry(breakers=breakers)
        step = Step(request, list(request.prompt_ids), frozenset(), stage.start(request))
        return float(-stage(torch.zeros(6), step)[5])

    assert cost(("\n",)) == pytest.approx(0.8 * 1.75**2)
    assert cost(("The end.",)) == 0.0  # only " He" stands after the breaker


def test_a_long_repetition_stays_finite():
    assert 1e20 < penalties(Dry(100.0, 1e9), [5] * 200)[5] < math.inf


@pytest.mark.parametrize("stage", [Dry(), Dry(5.0, 4.0, 1, ()), Dry(100.0, 1e300, 1), Dry(allowed=1, breakers=("a",))])
def test_conformance(stage):
    assert conformance(stage) == []


def test_spec_and_refusals():
    registry = discover(user_folder=None)
    text = r'dry 0.9 breakers="\n",a,"\"" | sample'
    assert format_spec(parse_spec(text, registry)) == text
    assert format_spec(parse_spec("dry", registry)) == "dry | sample"
    assert not Decoder((Dry(0.0),), Sample()).chain.processors
    with pytest.raises(UsageError, match="a breaker is empty"):
        Dry(breakers=("",))
