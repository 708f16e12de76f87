"""Banned words are never whole words of a story, in any spelling; and the rule about text behind this."""

import math
import random
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinystory.decoding import Commit, Decoder, Request, Step
from tinystory.decoding.loop import run
from tinystory.errors import UsageError
from tinystory.session.loading import load
from tinystory.testing import ToySession, ToyVocabulary, conformance
from tinystory.text.words import Watch, has_word
from tinystory_decoders.ban import Ban
from tinystory_decoders.sample import Sample

INF = math.inf


class Pieces:
    """A vocabulary with one token for each byte string. It detokenizes as our tokenizer does."""

    def __init__(self, *raw):
        self.raw = [piece if isinstance(piece, bytes) else piece.encode() for piece in raw]
        self.pieces = [piece.decode(errors="replace") for piece in self.raw]

    def detokenize(self, token_ids):
        return b"".join(self.raw[i] for i in token_ids).decode(errors="replace")


def left(words, pieces, *spelled):
    """Return the pieces that Ban leaves after a text of some pieces."""
    vocabulary = Pieces(*pieces)
    ids = [list(pieces).index(piece) for piece in spelled]
    stage, request = Ban(words), Request((ids or [0])[:1], 9, 1, vocabulary=vocabulary)
    state = stage.start(Request(tuple(ids), 9, 1, vocabulary=vocabulary)) if ids else stage.start(request)
    after = stage(torch.zeros(len(pieces)), Step(request, ids, frozenset(), state))
    return {piece for piece, logit in zip(pieces, after.tolist(), strict=True) if logit > -INF}


ENGLISH = (
    "",
    "Red",
    " red",
    "red",
    " RED",
    " hund",
    "redder",
    " r",
    "ed",
    "ball",
    " ball",
    ".",
    " red.",
    "\nball",
    " x",
)


@pytest.mark.parametrize(
    ("words", "spelled", "removed"),
    [
        (("red",), [" x"], {" red", " RED", " red."}),  # "xRed" and "xred" are other words
        (("red",), ["."], {"Red", "red", " red", " RED", " red."}),
        (("RED",), ["."], {"Red", "red", " red", " RED", " red."}),
        (("red",), [" hund"], {" red", " RED", " red."}),
        (("red",), [" r"], {"ed", " red", " RED", " red."}),
        (("red ball",), [" red"], {" ball", "\nball"}),
        (("red ball",), [" r", "ed"], {" ball", "\nball"}),
        (("red ball",), [" hund", "red"], set()),
        (("x red", "red ball"), [" x"], {" red", " RED", " red."}),
        (("red.",), ["."], {" red."}),
        (("red.",), [" red"], {".", " red."}),
        (("!",), ["."], set()),
        ((".",), [" x"], {".", " red."}),
    ],
)
def test_removed_by_hand(words, spelled, removed):
    assert left(words, ENGLISH, *spelled) == set(ENGLISH) - removed


def test_a_word_of_the_prompt_may_stand_there():
    assert "." in left(("red",), ENGLISH, " red")
    assert " ball" in left(("red",), ENGLISH, " red")


def test_letters_of_several_bytes_are_put_together():
    pieces = (b" Zo", "ë".encode()[:1], "ë".encode()[1:], "ê".encode()[1:], b"e", "ë".encode(), b" x")
    half = [b" Zo", "ë".encode()[:1]]
    assert left(("zoë",), pieces, b" Zo") == set(pieces) - {"ë".encode()}
    assert left(("ZOË",), pieces, *half) == set(pieces) - {"ë".encode()[1:]}
    assert left(("zoê",), pieces, *half) == set(pieces) - {"ê".encode()[1:]}


def test_where_nothing_is_left_the_story_ends_or_the_likeliest_stays():
    stage, vocabulary = Ban(("a", "b")), Pieces("", "a", "b")
    request = Request((0,), 9, 1, vocabulary=vocabulary)
    state = stage.start(request)
    step = Step(request, [0], frozenset({0}), state)
    assert stage(torch.tensor([-5.0, 1.0, 2.0]), step).tolist() == [-5.0, -INF, -INF]
    assert stage(torch.tensor([-INF, 1.0, 2.0]), step).tolist() == [-INF, -INF, 2.0]


@pytest.mark.parametrize("stage", [Ban(("a",)), Ban(("ab", "a b", ".")), Ban(("x", "b", "Cd", "w31")), Ban((",",))])
def test_conformance(stage):
    assert conformance(stage) == []


def test_an_empty_word_is_refused():
    with pytest.raises(UsageError, match="ban: a word is empty"):
        Ban(("a", " "))


letters = st.text("ab .", min_size=1, max_size=4).filter(str.strip)


def pattern(word):
    """A second version of the rule: an end with a letter needs a word boundary, and any white space is a space."""
    body = r"\s+".join(map(re.escape, word.split()))
    before = r"(?<!\w)" if re.match(r"\w", word.strip()) else ""
    after = r"(?!\w)" if re.search(r"\w$", word.strip()) else ""
    return re.compile(before + body + after, re.IGNORECASE)


@given(st.lists(letters, min_size=1, max_size=4), st.text("abB ._", max_size=12), st.text("abB ._\n", max_size=3))
@settings(deadline=None, max_examples=200)
def test_a_watch_sees_just_what_a_search_of_the_whole_text_sees(words, text, piece):
    characters = "abB ._\n"
    watch = Watch(words, [*characters, piece], lambda ids: "".join([*characters, piece][i] for i in ids))
    ids = [characters.index(c) for c in text]
    watched = watch.begin(ids[: len(ids) // 2])
    for token_id in ids[len(ids) // 2 :]:
        watched = watch.add(watched, token_id)
    new = [
        match.end() > len(re.sub(r"\s+", " ", text))
        for word in words
        for start in range(len(text) + len(piece) + 1)
        if (match := pattern(word).match(re.sub(r"\s+", " ", text + piece), start))
    ]
    assert (len(characters) in watch.completing(watched)) == (any(new) and bool(piece))
    assert all(has_word(text, word) == bool(pattern(word).search(text)) for word in words)


@given(st.lists(letters, min_size=1, max_size=3), st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_toy_stories_have_no_banned_word(words, seed):
    session, vocabulary = ToySession(seed=seed, eos_logit=-INF), ToyVocabulary()
    request = Request((0,), 40, seed, vocabulary=vocabulary)
    text = ""
    for _, event in run(session, [(Decoder((Ban(tuple(words)),), Sample(2.0)), request)]):
        if isinstance(event, Commit):
            text += vocabulary.detokenize([token.id for token in event.tokens])
            assert not any(pattern(word).search(text) for word in words)


def story(model, decoder, seed, n_tokens=80):
    tokenizer = model.tokenizer
    request = Request(tuple(tokenizer.encode("One day")), n_tokens, seed, vocabulary=tokenizer)
    events = run(model.session, [(decoder, request)])
    new_ids = [token.id for _, event in events if isinstance(event, Commit) for token in event.tokens]
    return tokenizer.detokenize([*request.prompt_ids, *new_ids])


def test_stories_of_a_tiny_checkpoint_have_no_banned_word(checkpoint):
    """A model with random weights spells words in all ways, also with parts of characters."""
    model = load(str(checkpoint))
    words = ("a", "the", "T", "Tim", "zoë", "it was", "s", "h")
    assert any(has_word(story(model, Decoder((), Sample()), seed), word) for seed in range(3) for word in words)
    for seed in range(3):
        text = story(model, Decoder((Ban(words),), Sample()), seed)
        assert not any(pattern(word).search(text) for word in words), text


def test_stories_of_the_shipped_model_have_no_banned_word():
    model = load("mini")
    words = ("the", "was", "little girl", "she", "he", "Lily", "and")
    for seed in range(2):
        text = story(model, Decoder((Ban(words),), Sample()), seed)
        assert not any(pattern(word).search(text) for word in words), text


@pytest.mark.parity
@given(st.integers(0, 10**6))
@settings(deadline=None, max_examples=200)
def test_what_transformers_forbids_is_forbidden(tokenizer, seed):
    """Ban acts like the id sequences of the words, except inside a longer word, which is another word."""
    from transformers.generation.logits_process import NoBadWordsLogitsProcessor

    rng = random.Random(seed)
    words = rng.sample(["Tim", "kite", "red drum", "It was", "dog", "Zoë"], rng.randint(1, 4))
    sequences = [tokenizer.encode(space + word, bos=False) for word in words for space in ("", " ")]
    begun = rng.choice(sequences)
    ids = [0, *(rng.randrange(1, 300) for _ in range(rng.randrange(4))), *tokenizer.encode(rng.choice([" .", ""]))]
    ids += begun[: rng.randrange(len(begun))]
    logits = torch.randn(300, generator=torch.Generator().manual_seed(seed))
    theirs = NoBadWordsLogitsProcessor(sequences)(torch.tensor([ids]), logits[None].clone())[0]
    stage, request = Ban(tuple(words)), Request((0,), 9, 1, vocabulary=tokenizer)
    state = stage.start(request)
    for token_id in ids[1:]:
        state = stage.observe(state, token_id, logits)
    ours = stage(logits, Step(request, ids, frozenset({0}), state))
    for token_id in (theirs == -INF).nonzero()[:, 0].tolist():
        text = tokenizer.detokenize([*ids, token_id])
        if any(re.search(pattern(word).pattern + r"\Z", text, re.IGNORECASE) for word in words):
            assert ours[token_id] == -INF
        else:  # the end of a longer word
            assert any(re.search(r"\w" + re.escape(word) + r"\Z", text) for word in words)
    assert set((ours == -INF).nonzero()[:, 0].tolist()) < set(range(300))
    assert ours[ours > -INF].equal(logits[ours > -INF])
