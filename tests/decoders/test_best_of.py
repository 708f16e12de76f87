"""Best of n chooses among the branches that a plain chain writes."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinystory.decoding import Commit, Decoder, Draft, Request, Token
from tinystory.decoding.loop import run
from tinystory.decoding.plugins import discover
from tinystory.decoding.spec import format_spec, parse_spec
from tinystory.errors import UsageError
from tinystory.testing import ToySession, conformance
from tinystory_decoders.best_of import BestOf
from tinystory_decoders.greedy import Greedy
from tinystory_decoders.sample import Sample
from tinystory_decoders.top_k import TopK

ENDLESS = {"eos_logit": -math.inf}
SCORES = ("mean-logprob", "typical", "distinct", "repeats")


def events_of(decoder, session=None, max_new_tokens=12, **others):
    decoder = decoder if isinstance(decoder, Decoder) else Decoder((TopK(9),), Sample(1.5), decoder)
    request = Request((0, 5, 3), max_new_tokens, others.pop("seed", 1), **others)
    return [event for _, event in run(session or ToySession(), [(decoder, request)])]


def tokens_of(events):
    return [token for event in events if isinstance(event, Commit) for token in event.tokens]


def story_of(number, session=None, **others):
    events = events_of(Decoder((TopK(9),), Sample(1.5)), session, story=number, **others)
    return tokens_of(events), events[-1].reason


@pytest.mark.parametrize(
    "session", [ToySession, lambda: ToySession(can_reorder=False), lambda: ToySession(max_seq_len=7)]
)
@pytest.mark.parametrize("seed", range(3))
def test_best_of_one_is_the_plain_chain(session, seed):
    """The tokens and the events are the same, so it streams."""
    for story in (0, 3):
        plain = events_of(Decoder((TopK(9),), Sample(1.5)), session(), seed=seed, story=story)
        best = events_of(BestOf(1), session(), seed=seed, story=story)
        assert best[:-1] == plain[:-1]
        assert best[-1].reason == plain[-1].reason


@given(st.integers(0, 1000), st.integers(1, 5), st.sampled_from(SCORES), st.integers(0, 2), st.booleans())
@settings(deadline=None, max_examples=40)
def test_it_tells_the_best_of_the_siblings(seed, n, score, story, can_reorder):
    search = BestOf(n, score)
    candidates = [story_of(number, seed=seed) for number in range(story * n, story * n + n)]
    events = events_of(search, ToySession(can_reorder=can_reorder), seed=seed, story=story)
    told = tokens_of(events)
    best = max(candidates, key=lambda candidate: search.worth(candidate[0]))
    assert (told, events[-1].reason) == best
    statistics = events[-1].statistics
    assert statistics["candidates"] == n
    worths = [search.worth(tokens)[0] for tokens, _ in candidates if tokens]
    if worths:
        assert statistics["score"] == max(worths)
        assert statistics["spread"] == max(worths) - min(worths)


def test_branches_have_noise_of_their_own():
    stories = [tokens_of(events_of(BestOf(3), ToySession(**ENDLESS), story=number)) for number in range(4)]
    assert len({tuple(tokens) for tokens in stories}) == 4


def story(*pairs):
    """Return tokens for pairs (id, log-probability), each with an entropy of one bit."""
    return [Token(token_id, logprob, entropy=1.0) for token_id, logprob in pairs]


BIT = math.log(2)


@pytest.mark.parametrize(
    ("score", "better", "worse"),
    [
        ("mean-logprob", story((2, -0.5), (3, -1.5)), story((2, -1.0), (3, -1.5))),
        ("mean-logprob", story((2, -0.5), (3, -1.5), (4, -1.0)), story((2, -1.1))),  # the mean, not the sum
        ("typical", story((2, -BIT), (3, -BIT)), story((2, -BIT / 4), (3, -BIT / 4))),
        ("typical", story((2, -BIT), (3, -BIT)), story((2, -3 * BIT), (3, -BIT))),
        ("distinct", story(*((i, -9.0) for i in (2, 3, 4, 5))), story(*((i, -1.0) for i in (2, 3, 2, 3)))),
        ("distinct", story((2, -1.0), (3, -1.0)), story((2, -2.0), (3, -2.0))),  # equals: the likelier one
        ("repeats", story(*((i, -9.0) for i in (2, 2, 2, 3, 3))), story(*((i, -1.0) for i in (2, 2, 2, 2, 2)))),
        ("repeats", story(*((i, -9.0) for i in (2, 2, 2, 3))), story((2, -1.0))),  # too short to tell
        *((score, story((2, -50.0)), []) for score in SCORES),
    ],
)
def test_scores_by_hand(score, better, worse):
    search = BestOf(score=score)
    assert search.worth(better) > search.worth(worse)


def test_the_leader_is_a_draft():
    events = events_of(BestOf(4), ToySession(**ENDLESS))
    candidates = [[t.id for t in story_of(number, ToySession(**ENDLESS))[0]] for number in range(4)]
    told, n_drafts = [], 0
    for event in events[:-1]:
        if isinstance(event, Draft):
            n_drafts += 1
            shown = told + [token.id for token in event.tokens]
            assert any(ids[: len(shown)] == shown for ids in candidates)
        else:
            told += [token.id for token in event.tokens]
    assert n_drafts >= 12


@pytest.mark.parametrize("n_calls", [1, 3, 6])
def test_a_cancel_keeps_the_draft(n_calls):
    session = ToySession(**ENDLESS)
    n_run = lambda: sum(call.verb in ("prefill", "decode") for call in session.calls)  # noqa: E731
    events = events_of(BestOf(4), session, cancel=lambda: n_run() >= n_calls)
    assert events[-1].reason == "cancelled"
    assert n_run() == n_calls
    assert len(tokens_of(events)) in (n_calls - 1, n_calls)


def test_candidates_share_a_batch():
    session = ToySession(**ENDLESS)
    events_of(BestOf(4), session, max_new_tokens=5)
    assert [call.rows for call in session.calls if call.verb == "decode"] == [4] * 4


@pytest.mark.parametrize("stage", [BestOf(), BestOf(1), BestOf(7, "repeats"), BestOf(2, "typical")])
def test_best_of_conforms(stage):
    assert conformance(stage) == []
    assert conformance(Decoder((TopK(3),), Greedy(), stage)) == []


def test_specs():
    registry = discover(user_folder=None)
    assert format_spec(parse_spec("best-of 3", registry)) == "sample | best-of 3"
    assert format_spec(parse_spec("top-k 5 | sample 0.8 | best-of score=repeats", registry)).endswith("score=repeats")
    with pytest.raises(UsageError, match="score must be mean-logprob or typical or distinct or repeats"):
        BestOf(score="luck")
