"""Diverse beam search: equal to a plain reference in float64, and to beam search with one group."""

import itertools
import math

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


def reference(session, prompt, limit, width, n_groups, penalty):
    """Search with dictionaries. Return each group's best story as (log-probability per token, new ids), best first.

    A story is its picked ids with EOS. Its value is the augmented sum of log-probabilities divided by their number.
    """
    size = width // n_groups
    alive = [{(): (0.0, 0.0)} for _ in range(n_groups)]  # ids -> augmented sum, own sum
    ended = [{} for _ in range(n_groups)]
    for length in range(1, limit + 1):
        taken = []
        for group in range(n_groups):
            longer = {}
            for ids, (augmented, own) in alive[group].items():
                logprobs = session.logits_after([*prompt, *ids]).double().log_softmax(dim=-1).tolist()
                for token_id, logprob in enumerate(logprobs):
                    dear = penalty * taken.count(token_id)
                    longer[(*ids, token_id)] = (augmented + logprob - dear, own + logprob)
            ranked = sorted(longer, key=lambda ids: longer[ids][0], reverse=True)[: 2 * size]
            over = [ids for ids in ranked[:size] if ids[-1] == 1 or length == limit]
            ended[group] |= {ids: longer[ids] for ids in over}
            best = sorted(ended[group], key=lambda ids: ended[group][ids][0] / len(ids), reverse=True)[:size]
            ended[group] = {ids: ended[group][ids] for ids in best}
            going = [ids for ids in ranked if ids[-1] != 1][:size] if length < limit else []
            taken += [ids[-1] for ids in going]
            worst = ended[group][best[-1]][0] / len(best[-1]) if len(best) == size else -math.inf
            if going and longer[going[0]][0] / length <= worst:
                going, taken = [], taken[: len(taken) - len(going)]
            alive[group] = {ids: longer[ids] for ids in going}
    bests = [next(iter((own / len(ids), ids) for ids, (_, own) in group.items())) for group in ended]
    return sorted(bests, reverse=True)


@given(
    st.integers(0, 10_000),
    st.sampled_from([(2, 2), (4, 2), (6, 3), (6, 2), (3, 3), (4, 1)]),
    st.sampled_from([0.0, 0.3, 1.0, 5.0]),
    st.integers(1, 9),
)
@settings(deadline=None, max_examples=40)
def test_it_is_what_the_paper_says(seed, shape, penalty, limit):
    session = ToySession(vocab_size=9, seed=seed)
    expected = reference(session, (0, 5, 3), limit, *shape, penalty)
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
