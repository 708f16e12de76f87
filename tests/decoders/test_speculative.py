"""Speculative decoding writes the story of plain decoding, in fewer runs of the model."""

import math
from functools import partial

import pytest
import torch

from tinystory.decoding import Commit, Decoder, Finish, Request
from tinystory.decoding.loop import run
from tinystory.decoding.plugins import discover
from tinystory.decoding.spec import format_spec, parse_spec
from tinystory.errors import UsageError
from tinystory.model.config import ModelConfig
from tinystory.model.transformer import Transformer
from tinystory.session.loading import load
from tinystory.session.native import NativeSession
from tinystory.story.tracing import retrace, story_logits
from tinystory.testing import ToySession, ToyVocabulary, conformance
from tinystory.text.sentences import whole_sentences
from tinystory_decoders.dry import Dry
from tinystory_decoders.greedy import Greedy
from tinystory_decoders.human import Human
from tinystory_decoders.sample import Sample
from tinystory_decoders.speculative import Speculative, _Lookup
from tinystory_decoders.top_k import TopK

V = 61
CHAINS = {
    "greedy": Decoder((), Greedy()),
    "sample": Decoder((), Sample()),
    "top-k": Decoder((TopK(40),), Sample(0.8)),
    "dry": Decoder((Dry(5.0, 2.0, 1),), Sample(1.2)),  # its state moves on with every token
}
PROMPT = (0, 5, 6, 7)


def random_model(seed, dtype, near=None):
    """Return random weights, or those of another model with some noise."""
    torch.manual_seed(seed)
    model = Transformer(ModelConfig.llama(V, 2, 2, 16, 40, 32)).to(dtype)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    if near is not None:
        for parameter, other in zip(model.parameters(), near.parameters(), strict=True):
            parameter.data.mul_(0.05).add_(other.data)
    return model.eval()


def sessions(dtype):
    target = random_model(1, dtype)
    drafts = {"near": random_model(2, dtype, near=target), "other": random_model(3, dtype)}
    opener = {name: NativeSession(model, 0, frozenset({1})) for name, model in drafts.items()}
    return NativeSession(target, 0, frozenset({1}), lambda name: opener[name].open())


def write(session, decoder, seed, max_new_tokens=60, prompt=PROMPT, **others):
    request = Request(prompt, max_new_tokens, seed, vocabulary=ToyVocabulary(V), **others)
    tokens, finish = [], None
    for _, event in run(session, [(decoder, request)]):
        if isinstance(event, Commit):
            tokens += event.tokens
        else:
            finish = event
    return tokens, finish


def faster(decoder, *options):
    return Decoder(decoder.processors, decoder.sampler, Speculative(*options))


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("draft", ["near", "other", "ngram"])
def test_the_story_is_that_of_plain_decoding(chain, draft):
    """The stories are equal in float64 token for token, also past the end of the context."""
    session = sessions(torch.float64)
    accepted = 0
    for seed in range(1 if chain == "greedy" else 4):
        plain, end = write(session, CHAINS[chain], seed)
        guessed, guessed_end = write(session, faster(CHAINS[chain], draft), seed)
        assert [token.id for token in guessed] == [token.id for token in plain]
        assert [token.logprob for token in guessed] == pytest.approx([token.logprob for token in plain], abs=1e-5)
        assert guessed_end.reason == end.reason
        accepted += guessed_end.statistics["accepted"]
    assert accepted > 0 or draft != "near"


@pytest.mark.slow
@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("draft", ["near", "other", "ngram"])
def test_fifty_stories_are_those_of_plain_decoding(chain, draft):
    session = sessions(torch.float64)
    for seed in range(50):
        plain, end = write(session, CHAINS[chain], seed)
        guessed, guessed_end = write(session, faster(CHAINS[chain], draft), seed)
        assert [token.id for token in guessed] == [token.id for token in plain]
        assert guessed_end.reason == end.reason


def picks(session, decoder, tokens, finish, seed, prompt, window):
    """Return the tokens that plain decoding picks along a story that speculation has written."""
    end = [min(session.eos_ids)] if finish.reason == "eos" else []
    ids = [*prompt, *(token.id for token in tokens), *end]
    logits = story_logits(session, ids, window, len(prompt))
    request = Request(prompt, 999, seed, vocabulary=ToyVocabulary(session.vocab_size), window=window)
    return list(retrace(decoder, request, ids, logits, eos_ids=session.eos_ids))


@pytest.mark.slow
@pytest.mark.parametrize("draft", ["mini", "ngram"])
def test_differences_of_float32_are_numerical_ties(draft):
    """With the shipped models and fifty seeds, every difference is a tie, and ties are rarer than 1 token in 5,000."""
    model = load("default")
    window = partial(whole_sentences, model.tokenizer)
    prompt = tuple(model.tokenizer.encode("Once upon a time"))
    n_tokens = n_ties = 0
    for chain in (CHAINS["greedy"], CHAINS["top-k"]):
        for seed in range(50):
            tokens, finish = write(model.session, faster(chain, draft), seed, 120, prompt, window=window)
            found = picks(model.session, chain, tokens, finish, seed, prompt, window)
            n_tokens += len(found)
            n_ties += sum(pick.picked != pick.token_id for pick in found)
            assert all(pick.picked == pick.token_id or pick.tie for pick in found)
    assert n_ties <= n_tokens / 5000, (n_ties, n_tokens)


@pytest.mark.parametrize(
    ("story", "guesses"),
    [
        ([1, 2, 3, 4, 1, 2], [3, 4, 1]),
        ([1, 2, 3, 5, 2, 6, 1, 2], [3, 5, 2]),
        ([1, 2, 3, 9, 2, 4, 1, 2], [3, 9, 2]),
        ([5, 1, 2, 3, 6, 1, 2, 4, 5, 1, 2], [3, 6, 1]),  # the longer match before the later one
        ([1, 2, 3, 1, 2, 4, 1, 2], [4, 1, 2]),  # of equals the latest
        ([1, 2, 1, 3, 2], []),  # one token is not enough
        ([7, 7, 7, 7], [7]),
        ([7, 7], []),
        ([7], []),
    ],
)
def test_lookup_by_hand(story, guesses):
    assert _Lookup().guess(story, (), 3) == guesses


def test_runs_of_the_model_are_saved():
    """If the draft is the model itself, all guesses are right, and each run gives 1 + k tokens."""
    session = ToySession(eos_logit=-math.inf)
    session.open = lambda model: ToySession(eos_logit=-math.inf)
    _, finish = write(session, faster(CHAINS["sample"], "x", 4), 1, 31)
    told = finish.statistics
    assert (told["acceptance"], told["target_calls"]) == (1.0, 7.0)  # 1 to begin with, then 5 at a time
    assert told["proposed"] == told["accepted"] == 24
    assert told["draft_seconds"] > 0
    assert sum(call.verb in ("prefill", "decode") for call in session.calls) == 7


def test_wrong_guesses_become_fewer():
    session = ToySession(eos_logit=-math.inf, memory=1)
    _, finish = write(session, faster(CHAINS["sample"], "x", 8), 1, 50)
    assert finish.statistics["proposed"] < 120


def test_a_stop_leaves_no_guess_behind():
    session = ToySession(eos_logit=-math.inf)
    session.open = lambda model: ToySession(eos_logit=-math.inf)
    seen = []
    request = Request((0,), 30, 1, stop=lambda: len(seen) == 9)
    for _, event in run(session, [(faster(CHAINS["sample"], "x", 4), request)]):
        seen += event.tokens if isinstance(event, Commit) else []
    assert len(seen) == 9
    assert isinstance(event, Finish)
    assert event.reason == "stop"


@pytest.mark.parametrize(
    "stage", [Speculative(), Speculative("x", 1), Speculative("ngram"), Speculative("ngram", 8), Speculative("x", 64)]
)
def test_conformance(stage):
    assert conformance(stage) == []
    assert conformance(Decoder((TopK(5), Dry(allowed=1)), Sample(0.7), stage)) == []


def test_refusals_and_spec():
    registry = discover(user_folder=None)
    text = "top-k 40 | sample 0.8 | speculative ngram k=8"
    assert format_spec(parse_spec(text, registry)) == text
    assert parse_spec("speculative", registry).models == ("mini",)
    assert parse_spec("speculative ngram", registry).models == ()
    with pytest.raises(UsageError, match="cannot guess those of human"):
        write(ToySession(), Decoder((), Human(), Speculative()), 1)
    session = ToySession()
    session.open = lambda model: ToySession(vocab_size=7)
    with pytest.raises(UsageError, match="mini has 7 tokens"):
        write(session, faster(CHAINS["sample"]), 1)
