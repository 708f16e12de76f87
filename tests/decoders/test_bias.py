"""Word bias: equal to transformers for the same id sequences, and checked by hand."""

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinystory.decoding import Decoder, Request, Step
from tinystory.decoding.plugins import discover
from tinystory.decoding.spec import format_spec, parse_spec
from tinystory.errors import UsageError
from tinystory.testing import ToyVocabulary, conformance
from tinystory_decoders.bias import Bias
from tinystory_decoders.sample import Sample

INF = math.inf


def biased(stage, logits, ids, vocabulary):
    state = stage.start(Request((0,), 9, 1, vocabulary=vocabulary))
    return stage(logits, Step(Request((0,), 9, 1), ids, frozenset(), state))


WORDS = ["Tim", "kite", "red drum", "It was", "dog", "Zoë", "a", "the", "."]


@pytest.mark.parity
@given(st.integers(0, 10**6))
@settings(deadline=None, max_examples=200)
def test_parity(tokenizer, seed):
    from transformers.generation.logits_process import SequenceBiasLogitsProcessor

    rng = random.Random(seed)
    words = {word: rng.uniform(-50, 50) for word in rng.sample(WORDS, rng.randint(1, 5))}
    sequences = {tuple(tokenizer.encode(s + w, bos=False)): b for w, b in words.items() for s in ("", " ")}
    begun = rng.choice(sorted(sequences))
    ids = [0, *(rng.randrange(300) for _ in range(rng.randrange(4))), *begun[: rng.randrange(len(begun))]]
    logits = torch.randn(300, generator=torch.Generator().manual_seed(seed))
    logits[[rng.randrange(300) for _ in range(rng.randrange(9))]] = -INF
    theirs = SequenceBiasLogitsProcessor(sequences)(torch.tensor([ids]), logits[None].clone())[0]
    torch.testing.assert_close(biased(Bias(words), logits, ids, tokenizer), theirs, rtol=1e-6, atol=1e-5)


def test_by_hand():
    vocabulary, logits = ToyVocabulary(7), torch.zeros(7)  # "", "", " ", ".", ",", "a", "b"
    assert biased(Bias({"a": 2.0, "b": -1.0}), logits, [0], vocabulary).tolist() == [0, 0, 0, 0, 0, 2, -1]
    assert biased(Bias({"ab": 2.0, "b": -1.0}), logits, [0, 5], vocabulary).tolist() == [0, 0, 0, 0, 0, 0, 1]
    assert biased(Bias({" ab ": 2.0}), logits, [0, 5], vocabulary).tolist() == [0, 0, 0, 0, 0, 0, 2]
    assert biased(Bias({"ax": 2.0}), logits, [0, 5], vocabulary).equal(logits)  # no token for x
    assert biased(Bias({"a": 1e300}), logits, [0], vocabulary).max() < INF


@pytest.mark.parametrize("stage", [Bias({"a": 3.0}), Bias({"ab": 3.5, "b a": -100.0, "zz": 1.0}), Bias({"a": -1e300})])
def test_conformance(stage):
    assert conformance(stage) == []


def test_spec_and_refusals():
    registry = discover(user_folder=None)
    text = 'bias "birthday cake"=-2 dragon=3 | sample'
    assert format_spec(parse_spec(text, registry)) == text
    assert not Decoder((Bias({}),), Sample()).chain.processors
    with pytest.raises(UsageError, match="bias: a word is empty"):
        Bias({" ": 1.0})
    with pytest.raises(UsageError, match="needs a finite number"):
        parse_spec("bias cat=nan", registry)
