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
    """Try every suffix at every place. A suffix with a breaker does not count."""
    breaks = {i for i, piece in enumerate(VOCABULARY.pieces) if any(text in piece for text in stage.breakers)}
    longest = {}
    for end in range(1, len(ids)):
        for length in range(stage.allowed, end + 1):
            suffix = ids[len(ids) - length :]
            if ids[end - length : end] == suffix and not breaks & set(suffix):
                longest[ids[end]] = max(length, longest.get(ids[end], 0))
    return [
        0.0 if i not in longest or i in breaks else stage.multiplier * stage.base ** (longest[i] - stage.allowed)
        for i in range(7)
    ]


stages = st.builds(
    Dry,
    st.sampled_from([0.8, 2.0]),
    st.sampled_from([1.0, 1.75, 3.0]),
    st.integers(1, 4),
    st.sampled_from([(), (".",), (",", "a")]),
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
