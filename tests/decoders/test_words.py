"""The search `words`: unlikely words come as whole words, too; and the checklist in the chat."""

import io
import math
import random
import re

import pytest
import torch
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from tinystory.decoding import Commit, Decoder, Finish, Request
from tinystory.decoding.loop import run
from tinystory.decoding.plugins import discover
from tinystory.decoding.spec import format_spec, parse_spec
from tinystory.errors import UsageError
from tinystory.repl.app import App, ChatSettings
from tinystory.screen.screen import Screen
from tinystory.session.loading import load
from tinystory.studio.backend import ModelBackend
from tinystory.studio.studio import Studio
from tinystory.testing import ToySession, ToyVocabulary, conformance
from tinystory_decoders.ban import Ban
from tinystory_decoders.greedy import Greedy
from tinystory_decoders.sample import Sample
from tinystory_decoders.top_k import TopK
from tinystory_decoders.words import Words, _spelled


def whole(text, word):
    """Return True if a text has a whole word, by another pattern than the code's."""
    return re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE)


def write(session, vocabulary, decoder, seed=1, limit=80, prompt=(0,), **others):
    request = Request(prompt, limit, seed, vocabulary=vocabulary, **others)
    tokens, finish = [], None
    for _, event in run(session, [(decoder, request)]):
        if isinstance(event, Commit):
            tokens += event.tokens
        else:
            finish = event
    assert isinstance(finish, Finish)
    return vocabulary.detokenize([*prompt, *(token.id for token in tokens)]), tokens, finish


@pytest.mark.parametrize("words", [("b",), ("cat", "dog"), ("a b", "Zed"), ("a", "b", "c", "d")])
@pytest.mark.parametrize("sampler", [Greedy(), Sample(), Sample(3.0)])
def test_the_words_come_to_a_model_that_writes_noise(words, sampler):
    """The words come also at the smallest limit that is allowed, and the story may end before the limit."""
    n_tokens = sum(len(word) + 1 for word in words)
    for seed in range(6):
        session = ToySession(seed=seed, eos_logit=5.0)
        text, tokens, finish = write(
            session, ToyVocabulary(), Decoder((), sampler, Words(words)), seed, 3 * n_tokens + 40
        )
        assert all(whole(text, word) for word in words), text
        assert finish.statistics["words_placed"] == len(words)
        assert finish.statistics["words_missing"] == 0
        assert 0 < finish.statistics["mean_position"] <= 1
        assert len(tokens) <= 3 * n_tokens + 40


def test_the_story_may_end_only_when_the_words_are_there():
    text, _, finish = write(ToySession(eos_logit=30.0), ToyVocabulary(), Decoder((), Sample(), Words(("cat",))))
    assert whole(text, "cat")
    assert text.endswith("cat")  # then at once
    assert finish.reason == "eos"


def test_words_that_are_there_are_not_asked_for():
    vocabulary = ToyVocabulary()
    prompt = tuple(vocabulary.encode("the cat "))
    decoder = Decoder((), Sample(), Words(("Cat",)))
    assert write(ToySession(), vocabulary, decoder, prompt=prompt, limit=3)[2].statistics["words_placed"] == 0
    plain = write(ToySession(), vocabulary, Decoder((), Sample()), prompt=prompt)
    assert write(ToySession(), vocabulary, decoder, prompt=prompt)[1] == plain[1]


def test_a_word_at_the_end_of_the_prompt_stays_whole():
    vocabulary = ToyVocabulary()
    for seed in range(20):
        text, *_ = write(
            ToySession(seed=seed), vocabulary, Decoder((), Sample(), Words(("cat",))),
            prompt=tuple(vocabulary.encode("the cat")), limit=60,
        )  # fmt: skip
        assert whole(text, "cat")


def test_refusals():
    vocabulary = ToyVocabulary()
    decoder = Decoder((), Sample(), Words(("cat", "owl")))
    with pytest.raises(UsageError, match="words: cat, owl need at least 64 new tokens; max-tokens is 63"):
        write(ToySession(), vocabulary, decoder, limit=63)
    assert write(ToySession(), vocabulary, decoder, limit=0)[2].reason == "length"
    with pytest.raises(UsageError, match="cannot spell 'zoë'"):
        write(ToySession(), vocabulary, Decoder((), Sample(), Words(("zoë",))))
    with pytest.raises(UsageError, match="there is no word"):
        Words(())
    with pytest.raises(UsageError, match="a word is empty"):
        Words(("a", ""))


def test_forced_tokens_pass_by_the_processors():
    decoder = Decoder((Ban(("cat",)),), Sample(), Words(("cat",)))
    text, _, finish = write(ToySession(), ToyVocabulary(), decoder)
    assert whole(text, "cat")
    assert finish.statistics["forced_tokens"] > 0


def test_spellings_fit_their_place(tokenizer):
    spelling = _spelled("kite", tokenizer)
    for before, text in [
        ("a", " kite"), ("a,", " kite"), ("", "Kite"), ("He ran.", " Kite"), ("He ran.\n", "Kite"),
        ("a ", "kite"), ('He said, "', "kite"), ('He said, "No!"', " Kite"), ('"Yes," he said,', " kite"),
    ]:  # fmt: skip
        assert tokenizer.detokenize(spelling.after(before)) == text, before


def test_words_of_a_tiny_checkpoint(checkpoint):
    """The vocabulary has bytes and long spellings, and the story is longer than the context of 64 tokens."""
    model = load(str(checkpoint))
    words = ("Zoë", "red drum", "owl", "umbrella")
    for seed in range(2):
        text, *_ = write(model.session, model.tokenizer, Decoder((TopK(20),), Sample(), Words(words)), seed, 140)
        assert all(whole(text, word) for word in words), text


def test_conformance():
    for words in (("b",), ("a", "x y"), ("cd",)):
        assert conformance(Words(words), max_new_tokens=60) == []
    assert conformance(Decoder((TopK(3),), Greedy(), Words(("b",))), max_new_tokens=60) == []


def test_spec():
    text = 'sample 0.8 | words owl,"red ball"'
    assert format_spec(parse_spec(text, discover(user_folder=None))) == text


def words_of(vocabulary):
    """Return the words that are single tokens, without names."""
    tokens = (piece[1:] for piece in vocabulary.pieces if re.fullmatch(" [a-z]{3,}", piece))
    return sorted(set(tokens))


@pytest.mark.slow
def test_a_hundred_stories_have_their_three_words():
    """The shipped model writes random words of its vocabulary, and their unlikelihood has a limit."""
    model = load("default")
    rng, known = random.Random(1), words_of(model.tokenizer)
    placed, others, n_forced = [], [], 0
    for seed in range(100):
        words = tuple(rng.sample(known, 3))
        decoder = Decoder((TopK(40),), Sample(0.8), Words(words))
        text, tokens, finish = write(model.session, model.tokenizer, decoder, seed, 256)
        assert all(whole(text, word) for word in words), (words, text)
        n_forced += finish.statistics["forced_tokens"] > 0
        pieces = [model.tokenizer.pieces[token.id].strip().lower() for token in tokens]
        first = {pieces.index(word) for word in words if word in pieces}
        for place, token in enumerate(tokens):
            (placed if place in first else others).append(-token.logprob / math.log(2))
    assert sum(others) / len(others) < 2
    assert sum(placed) / len(placed) < 13
    assert n_forced < 10


@pytest.fixture
def talk(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    registry = discover(user_folder=None)
    backend = ModelBackend.open("mini", "float32", "cpu")

    def converse(keys, spec, color=False):
        studio = Studio(registry, parse_spec(spec, registry), backend=backend, open_model=lambda name: backend, seed=7)
        stream = io.StringIO()
        with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=DummyOutput()):
            keyboard.send_text(keys + "\x04")
            assert App(studio, Screen(stream, color=color), ChatSettings(color=color)).run() == 0
        return studio, stream.getvalue()

    return converse


def test_the_decoders_words_are_on_the_checklist(talk):
    studio, output = talk("/wish dog\rOne day\r/wish\r/words off\r", "sample 0.8 | words owl,kite")
    assert "· dog  · owl  · kite" in output
    assert re.search(r"[✓·] dog  ✓ owl  ✓ kite", output)
    assert "\n✓ owl  ✓ kite" in output
    assert output.count("/words is called /wish now") == 1
    assert studio.wanted == ("owl", "kite")
    assert whole(studio.text, "owl")
    assert whole(studio.text, "kite")


def test_the_words_are_ticked_while_the_story_streams(talk):
    _, output = talk("One day\r", "sample 0.8 | words owl,kite", color=True)
    assert output.count(" ✓\x1b") == 2


def test_too_little_room_is_one_line(talk):
    _, output = talk("/len 20\rOne day\r", "sample 0.8 | words owl,kite")
    assert "words: owl, kite need at least 46 new tokens; max-tokens is 20" in output


def test_a_story_that_goes_on_is_not_left_with_an_empty_turn(talk):
    """A story that is refused before its first token leaves a turn only if something was typed."""
    studio, output = talk("/len 20\rOne day\r/decoder words owl,kite\r/go\r/go\r", "sample 0.8")
    assert output.count("max-tokens is 20") == 2
    assert len(studio.tree.turns) == 1


def test_logits_given_are_not_changed():
    """The story has the model's own log-probabilities, and not the raised ones."""
    session, vocabulary = ToySession(eos_logit=-math.inf), ToyVocabulary()
    _, tokens, _ = write(session, vocabulary, Decoder((), Sample(), Words(("cat",))), limit=60)
    story = [0]
    for token in tokens:
        own = ToySession(eos_logit=-math.inf).logits_after(story).log_softmax(-1)[token.id]
        assert token.logprob == pytest.approx(float(own), abs=1e-4)
        story.append(token.id)
    assert torch.is_tensor(own)
