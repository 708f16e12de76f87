"""Diverse beam search: equal to algorithm 1 of the paper in float64, and to beam search with one group."""

import itertools
import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinystory.decoding import Commit, Decoder, Request
from tinystory.decoding.loop import run
from tinystory.errors import UsageError
from tinystory.testing import ToySession, conformance
from tinystory_decoders.beam import Beam
from tinystory_decoders.diverse_beam import DiverseBeam
from tinystory_decoders.top_k import TopK


def written(search, session, prompt=(0, 5, 3), max_new_tokens=10, story=0, processors=()):
    """Return the token ids, the finish reason and the statistics."""
    jobs = [(Decoder(processors, None, search), Request(prompt, max_new_tokens, 1, story=story))]
    events = [event for _, event in run(session, jobs)]
    ids = [token.id for event in events if isinstance(event, Commit) for token in event.tokens]
    return ids, events[-1].reason, events[-1].statistics


def algorithm_1(session, prompt, limit, width, n_groups, penalty):
    """Write the stories of algorithm 1 of the paper, in float64.

    Y[g] has the stories of group g, as pairs of ids and penalties paid. At each time, the groups choose in order. Each
    maximizes log-probabilities minus lambda times the Hamming diversity term: how often the groups before it chose the
    token at this time. The paper has stories of one length only, so these rules are added: a story with an EOS among
    the best B' choices is put aside, and others fill its place; the best B' of these by the mean are kept; a group
    whose best story cannot become one of them stops.

    Returns:
        Each group's best story as (log-probability per token, ids with EOS), the best first.
    """

    def theta(ids):
        return sum(
            float(session.logits_after([*prompt, *ids[:n]]).double().log_softmax(dim=-1)[token_id])
            for n, token_id in enumerate(ids)
        )

    def mean(story):
        return (theta(story[0]) - story[1]) / len(story[0])

    size = width // n_groups
    Y = [[((), 0.0)] for _ in range(n_groups)]
    complete = [[] for _ in range(n_groups)]
    for _ in range(limit):
        chosen_now = Counter()
        for g in range(n_groups):
            options = [
                ((*ids, token_id), paid + penalty * chosen_now[token_id])
                for ids, paid in Y[g]
                for token_id in range(session.vocab_size)
            ]
            options.sort(key=mean, reverse=True)  # all have the same length
            ends = [story for story in options[:size] if story[0][-1] in session.eos_ids]
            Y[g] = [story for story in options if story[0][-1] not in session.eos_ids][:size]
            chosen_now.update(ids[-1] for ids, _ in ends + Y[g])
            complete[g] = sorted(complete[g] + ends, key=mean, reverse=True)[:size]
            if len(complete[g]) == size and Y[g] and mean(Y[g][0]) <= mean(complete[g][-1]):
                Y[g] = []
    bests = [max(ended + going, key=mean)[0] for ended, going in zip(complete, Y, strict=True)]
    return sorted(((theta(ids) / len(ids), ids) for ids in bests), reverse=True)


@given(
    st.integers(0, 10_000),
    st.sampled_from([(2, 2), (4, 2), (6, 3), (6, 2), (3, 3), (4, 1)]),
    st.sampled_from([0.0, 0.3, 1.0, 5.0, 1000.0]),
    st.integers(1, 5),
)
@settings(deadline=None, max_examples=40)
def test_it_is_what_the_paper_says(seed, shape, penalty, limit):
    session = ToySession(vocab_size=7, seed=seed)
    expected = algorithm_1(session, (0, 5, 3), limit, *shape, penalty)
    if any(abs(a[0] - b[0]) < 1e-5 for a, b in itertools.pairwise(expected) if a[1] != b[1]):
        return  # a tie
    for number, (value, ids) in enumerate(expected):
        found, reason, statistics = written(DiverseBeam(*shape, penalty), session, (0, 5, 3), limit, number)
        assert found == [token_id for token_id in ids if token_id != 1]
        assert reason == ("eos" if ids[-1] == 1 else "length")
        assert statistics["score"] == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("processors", [(), (TopK(3),)])
def test_one_group_is_beam_search(seed, processors):
    for options in ({}, {"length_penalty": 0.0, "early_stopping": True}):
        for story in (0, 2):
            one = written(DiverseBeam(4, 1, **options), ToySession(seed=seed), story=story, processors=processors)
            assert one == written(Beam(4, **options), ToySession(seed=seed), story=story, processors=processors)


def test_a_large_penalty_keeps_groups_apart():
    """Three groups of one story each never take the same token at the same place."""
    session = ToySession(eos_logit=-math.inf)
    stories = [written(DiverseBeam(3, 3, 100.0), session, story=number)[0] for number in range(3)]
    assert all(len(set(column)) == 3 for column in zip(*stories, strict=True))
    alike = [written(DiverseBeam(3, 3, 0.0), session, story=number)[0] for number in range(3)]
    assert alike[0] == alike[1] == alike[2]


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_groups_differ_at_every_place_up_to_the_limit(limit):
    """The tokens that groups took at the last place before the limit count, too."""
    session = ToySession(eos_logit=-math.inf)
    stories = [written(DiverseBeam(3, 3, 1000.0), session, story=n, max_new_tokens=limit)[0] for n in range(3)]
    assert [len(set(column)) for column in zip(*stories, strict=True)] == [3] * limit


@pytest.mark.parametrize("limit", [1, 4])
def test_a_group_that_stops_here_counts_at_this_place(limit):
    """The first group ends its story at once. Its EOS and the token that would have come instead are both taken."""
    session = ToySession(eos_logit=20.0)
    likeliest = session.logits_after([0, 5, 3]).argsort(descending=True).tolist()
    stories = [written(DiverseBeam(2, 2, 1000.0), session, story=n, max_new_tokens=limit)[0] for n in range(2)]
    assert likeliest[0] == 1
    assert stories[0] == []
    assert stories[1][0] == likeliest[2]


def test_the_first_group_pays_nothing():
    session = ToySession(seed=2)
    stories = [written(DiverseBeam(6, 3, 2.0), session, story=number)[0] for number in range(3)]
    assert written(Beam(2), session)[0] in stories


@pytest.mark.parametrize(
    "stage",
    [DiverseBeam(), DiverseBeam(6, 3, 1.5), DiverseBeam(3, 3, 0.0), DiverseBeam(4, 1, length_penalty=0.0),
     DiverseBeam(8, 2, 0.2, early_stopping=True)],
)  # fmt: skip
def test_diverse_beams_conform(stage):
    assert conformance(stage) == []


def test_they_go_on_past_the_context():
    session = ToySession(max_seq_len=9, eos_logit=-math.inf)
    ids, reason, _ = written(DiverseBeam(4, 2), session, max_new_tokens=30)
    assert reason == "length"
    assert ids == written(DiverseBeam(4, 2), ToySession(eos_logit=-math.inf), max_new_tokens=30)[0]


def test_groups_have_to_share_the_width():
    with pytest.raises(UsageError, match="diverse-beam: a width of 4 cannot be divided among 3 groups equally"):
        DiverseBeam(4, 3)
    with pytest.raises(UsageError, match="penalty must be a number ≥ 0"):
        DiverseBeam(penalty=-1.0)
