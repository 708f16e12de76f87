"""Tracing: the logits are those of the loop, each token is picked again, and causes are named."""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinystory.decoding import Decoder, LogitsProcessor, Request, Sampler, Search, Token, latest_half, option
from tinystory.decoding.loop import run
from tinystory.decoding.plugins import discover
from tinystory.decoding.spec import parse_spec
from tinystory.errors import TinystoryError, UsageError
from tinystory.session.loading import load
from tinystory.story import walk as walking
from tinystory.story.tracing import alternatives, changed, funnel, parting, retrace, story_logits, whatif
from tinystory.testing import ToySession
from tinystory.text.sentences import whole_sentences
from tinystory_decoders.greedy import Greedy
from tinystory_decoders.min_p import MinP
from tinystory_decoders.sample import Sample
from tinystory_decoders.temperature import Temperature
from tinystory_decoders.top_k import TopK

ENDLESS = {"eos_logit": -math.inf}
EOS = frozenset({1})
PROMPT = (0, 5, 3)
SPECS = ["greedy", "sample", "top-k 5 | temperature 0.8 | sample", "min-p 0.1 | sample 1.3", "top-p 0.9 | sample 0.8"]


@pytest.fixture(scope="module")
def spec():
    registry = discover(user_folder=None)
    return lambda text: parse_spec(text, registry)


@pytest.fixture(scope="module")
def shipped():
    return load()


@pytest.fixture(scope="module")
def tiny(checkpoint):
    return load(str(checkpoint))


@dataclass(frozen=True)
class Spy(LogitsProcessor):
    """Keeps the logits that it receives."""

    name = "spy"

    def __call__(self, logits, step):
        SEEN.append(logits.clone())
        return logits


@dataclass(frozen=True)
class Ban(LogitsProcessor):
    """Removes the tokens in `tokens`; if that is empty, all tokens."""

    name = "ban"
    tokens: tuple[int, ...] = ()

    def __call__(self, logits, step):
        return logits.index_fill(0, torch.tensor(self.tokens or range(len(logits))), -math.inf)


@dataclass(frozen=True)
class NeverTwice(LogitsProcessor):
    """Removes the token that was picked last, which is its state."""

    name = "never-twice"

    def __call__(self, logits, step):
        return logits if step.state is None else logits.index_fill(0, torch.tensor([step.state]), -math.inf)

    def observe(self, state, token_id, logits):
        return token_id


@dataclass(frozen=True)
class Bias(LogitsProcessor):
    """Adds to the logit of one token."""

    name = "bias"
    token: int = option(help="the token")
    by: float = option(help="how much")

    def __call__(self, logits, step):
        return logits.index_add(0, torch.tensor([self.token]), torch.tensor([self.by]))


@dataclass(frozen=True)
class Mute(Sampler):
    """Greedy, but it does not know its probabilities."""

    name = "mute"

    def __call__(self, logits, step):
        return int(logits.argmax())


@dataclass(frozen=True)
class Loop(Search):
    name = "loop"


SEEN = []


def tell(decoder, session, prompt=PROMPT, n=20, seed=1, window=latest_half, story=0):
    """Write a story with the loop, and return it as TurnLogits; an EOS follows if the model ended it."""
    request = Request(tuple(prompt), n, seed, window=window, story=story)
    token_ids = list(prompt)
    for _, event in run(session, [(decoder, request)]):
        token_ids += [token.id for token in getattr(event, "tokens", ())]
    if event.reason == "eos":
        token_ids.append(min(session.eos_ids))
    return decoder, request, token_ids, story_logits(session, token_ids, window, len(prompt))


def differing(picks):
    return [pick.position for pick in picks if pick.picked != pick.token_id]


def rows(*values):
    return torch.tensor(values, dtype=torch.float32)


# What a token knows of the distribution it came from.


@given(st.lists(st.floats(-30, 30, width=32) | st.just(-math.inf), min_size=2, max_size=20), st.data())
@settings(deadline=None)
def test_a_token_knows_its_rank_and_the_entropy(values, data):
    logits = torch.tensor([*values, 0.5])
    token_id = data.draw(st.integers(0, len(values)))
    token = Token.of(logits, token_id)
    probs = logits.double().softmax(-1)
    assert token.logprob == pytest.approx(float(logits.double().log_softmax(-1)[token_id]), abs=1e-5)
    assert token.rank == int((logits > logits[token_id]).sum())
    assert token.entropy == pytest.approx(-sum(p * math.log2(p) for p in probs.tolist() if p), abs=1e-4)


def test_the_loop_tells_the_rank_of_what_it_picks():
    tokens = []
    for _, event in run(ToySession(**ENDLESS), [(Decoder((), Greedy()), Request(PROMPT, 5, 1))]):
        tokens += getattr(event, "tokens", ())
    assert [token.rank for token in tokens] == [0] * 5
    assert all(0 < token.entropy < 5 for token in tokens)


def test_samplers_know_their_probabilities():
    logits = rows(1.0, 3.0, -math.inf)
    assert Greedy().log_probs(logits, None).tolist() == [-math.inf, 0, -math.inf]
    halved = Sample(0.5).log_probs(logits, None).tolist()
    assert halved == pytest.approx([-4 - math.log(1 + math.exp(-4)), -math.log(1 + math.exp(-4)), -math.inf], abs=1e-6)
    assert Sample(1e-300).log_probs(logits, None)[1] == 0
    assert Mute().log_probs(logits, None) is None


# The model's view.


@given(
    prompt=st.lists(st.integers(2, 31), max_size=20),
    max_seq_len=st.integers(1, 12),
    n=st.integers(0, 30),
    window=st.sampled_from([latest_half, lambda ids, size: ids, lambda ids, size: ids[-1:], lambda *_: ()]),
)
@settings(deadline=None, max_examples=100)
def test_the_logits_are_those_the_loop_saw(prompt, max_seq_len, n, window):
    SEEN.clear()
    session = ToySession(max_seq_len=max_seq_len, memory=99, **ENDLESS)
    *_, logits = tell(Decoder((Spy(),), Sample()), session, [0, *prompt], n, window=window)
    assert len(logits) == n
    assert torch.equal(logits, torch.stack(SEEN) if n else torch.empty(0, 32))


def test_the_logits_of_a_real_model_are_those_the_loop_saw_when_it_outgrows_its_context(tiny):
    def window(token_ids, max_seq_len):
        return whole_sentences(tiny.tokenizer, token_ids, max_seq_len)

    SEEN.clear()
    decoder = Decoder((Ban((0,)), Spy()), Sample())
    *_, token_ids, logits = tell(decoder, tiny.session, (0, 40, 50), 150, window=window)
    assert len(token_ids) == 153 > 2 * tiny.session.max_seq_len
    seen = torch.stack(SEEN)
    seen[:, 0] = logits[:, 0]  # what the ban had removed
    torch.testing.assert_close(logits, seen, atol=1e-3, rtol=1e-4)


def test_small_chunks_give_the_same_logits(tiny, monkeypatch):
    token_ids = torch.randint(1, 300, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    whole = story_logits(tiny.session, token_ids, latest_half)
    monkeypatch.setattr(walking, "_LARGEST_CHUNK", 4 * 300 * 7)
    sizes = []
    decode = type(tiny.session).decode
    monkeypatch.setattr(type(tiny.session), "decode", lambda s, ids: sizes.append(ids.shape[1]) or decode(s, ids))
    torch.testing.assert_close(story_logits(tiny.session, token_ids, latest_half), whole, atol=1e-3, rtol=1e-4)
    assert sizes == [7, 7, 7, 7, 7, 3]
    assert whole.shape == (39, 300)


def test_the_callers_session_is_left_as_it_is(tiny):
    toy = ToySession()
    toy.prefill([PROMPT])
    story_logits(toy, [0, 9, 8, 7], latest_half)
    assert toy.rows == [list(PROMPT)]
    assert len(toy.calls) == 1
    tiny.session.prefill([[0, 40, 50]])
    expected = tiny.session.decode(torch.tensor([60]))
    tiny.session.rewind([1])
    story_logits(tiny.session, [0, 9, 8, 7], latest_half)
    assert torch.equal(tiny.session.decode(torch.tensor([60])), expected)


def test_a_story_that_no_model_or_memory_takes_is_refused():
    session = ToySession()
    with pytest.raises(UsageError, match="token id 32; the vocabulary goes from 0 to 31"):
        story_logits(session, [0, 5, 32], latest_half)
    with pytest.raises(ValueError, match=r"start is 0; it must be in 1\.\.2"):
        story_logits(session, [0, 5], latest_half, 0)
    session.vocab_size = 2**28
    with pytest.raises(UsageError, match="logits of 2 tokens, 268435456 for each, take more than 1 GB"):
        story_logits(session, [0, 5, 3], latest_half)


# Picking again.


@pytest.mark.parametrize("text", SPECS)
def test_a_story_is_picked_again_token_by_token(text, spec, shipped):
    decoder, request, token_ids, logits = tell(
        spec(text), shipped.session, shipped.tokenizer.encode("One day, Tim"), 80
    )
    eos_ids = shipped.session.eos_ids
    picks = list(retrace(decoder, request, token_ids, logits, eos_ids=eos_ids))
    assert [pick.position for pick in picks] == list(range(len(request.prompt_ids), len(token_ids)))
    assert [pick.token_id for pick in picks] == token_ids[len(request.prompt_ids) :]
    assert all(pick.tie for pick in picks if pick.picked != pick.token_id)
    assert sum(pick.tie for pick in picks) <= 1
    # Rows from before the end of the prompt do as well.
    more = story_logits(shipped.session, token_ids, latest_half)
    assert differing(retrace(decoder, request, token_ids, more, eos_ids=eos_ids)) == differing(picks)


def test_a_changed_token_is_found_where_it_stands_and_the_recorded_past_goes_on():
    session = ToySession(**ENDLESS)
    decoder, request, token_ids, _ = tell(Decoder((NeverTwice(), TopK(9)), Sample()), session)
    forged = list(token_ids)
    forged[10] = next(i for i in range(2, 32) if i not in forged[9:12])
    logits = story_logits(session, forged, latest_half, 3)
    picks = list(retrace(decoder, request, forged, logits))
    assert differing(picks)[0] == 10
    assert (picks[7].picked, picks[7].token_id, picks[7].tie) == (token_ids[10], forged[10], False)
    # The state of the next position is that of the forged token.
    assert picks[8].received[1][forged[10]] == -math.inf


def test_a_changed_seed_is_found():
    decoder, request, token_ids, logits = tell(Decoder((), Sample()), ToySession(**ENDLESS))
    other = Request(request.prompt_ids, 20, seed=2)
    assert differing(retrace(decoder, request, token_ids, logits)) == []
    assert differing(retrace(decoder, other, token_ids, logits))


def test_two_logits_that_differ_by_less_than_rounding_are_a_tie():
    request = Request((0,), 1, 1)
    for gap, tie in ((1e-4, True), (2e-3, False)):
        (pick,) = retrace(Decoder((), Greedy()), request, [0, 2], rows([0, 0, 1, 1 + gap]))
        assert (pick.picked, pick.token_id, pick.tie) == (3, 2, tie)
    (pick,) = retrace(Decoder((Ban((2,)),), Greedy()), request, [0, 2], rows([0, 0, 1, 1]))
    assert not pick.tie


def test_any_eos_at_the_end_is_the_end():
    request, logits = Request((0,), 1, 1), rows([0, 0, 1, 2])
    (pick,) = retrace(Decoder((), Greedy()), request, [0, 2], logits, eos_ids=frozenset({2, 3}))
    assert (pick.picked, pick.token_id, pick.tie) == (3, 3, False)
    (pick,) = retrace(Decoder((), Greedy()), request, [0, 1], logits, eos_ids=frozenset({0, 1}))
    assert (pick.picked, pick.token_id) == (3, 1)


def test_a_story_that_ended_by_itself_ends_again():
    decoder, request, token_ids, logits = tell(Decoder((), Sample()), ToySession(eos_logit=5.0), n=60)
    assert token_ids[-1] == 1
    picks = list(retrace(decoder, request, token_ids, logits, eos_ids=EOS))
    assert differing(picks) == []
    assert picks[-1].picked == 1


def test_where_no_token_is_left_nothing_is_picked():
    (pick,) = retrace(Decoder((Ban(),), Sample()), Request((0,), 1, 1), [0, 2], rows([0, 0, 1, 1]))
    assert (pick.picked, pick.token_id) == (-1, 2)
    with pytest.raises(TinystoryError, match="no token is left"):
        tell(Decoder((Ban(),), Sample()), ToySession())


@pytest.mark.parametrize(
    ("decoder", "prompt", "message"),
    [
        (Decoder((), None, Loop()), (0,), "loop is a search"),
        (Decoder(), (0,), "no sampler"),
        (Decoder((), Greedy()), (1,), "does not begin with the prompt"),
    ],
)
def test_what_cannot_be_looked_back_at_is_refused_in_one_line(decoder, prompt, message):
    with pytest.raises(UsageError, match=message) as caught:
        list(retrace(decoder, Request(prompt, 1, 1), [0, 2], rows([0, 0, 1, 1])))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("n_rows", [0, 1, 4])
def test_logits_that_are_not_the_storys_are_refused(n_rows):
    """The prompt has two tokens, so the four of the story have two or three rows."""
    with pytest.raises(ValueError, match=f"{n_rows} rows of logits do not fit 4 tokens after 2"):
        list(retrace(Decoder((), Greedy()), Request((0, 2), 2, 1), [0, 2, 3, 1], torch.zeros(n_rows, 4)))


# The funnel.


def test_the_funnel_counts_what_each_stage_leaves():
    decoder = Decoder((Temperature(1), TopK(3), Temperature(0.5), Ban((3,))), Greedy())
    probs = [0.4, 0.3, 0.1, 0.2]
    logits = rows([math.log(p) for p in probs] + [-math.inf])
    (pick,) = retrace(decoder, Request((0,), 1, 1), [0, 0], logits)
    effects = funnel(decoder, pick)
    # Temperature 1 is neutral and not in the chain; the masses are the model's own, whatever the temperature.
    assert [(e.stage, e.left, e.removed, e.n_removed) for e in effects] == [
        ("model", 4, (4,), 1),
        ("top-k 3", 3, (2,), 1),
        ("temperature 0.5", 3, (), 0),
        ("ban", 2, (3,), 1),
        ("greedy", 1, (1,), 1),
    ]
    assert [e.mass for e in effects] == pytest.approx([1, 0.9, 0.9, 0.7, 0.4])


def test_the_funnel_names_the_ten_likeliest_of_what_is_removed():
    decoder = Decoder((TopK(1),), Greedy())
    logits = torch.arange(20.0)[None]
    (pick,) = retrace(decoder, Request((0,), 1, 1), [0, 19], logits)
    effect = funnel(decoder, pick)[1]
    assert (effect.n_removed, effect.removed) == (19, tuple(range(18, 8, -1)))


def test_alternatives_are_the_likeliest_with_their_probability():
    found = alternatives(rows(math.log(0.1), math.log(0.6), math.log(0.3)), 2)
    assert found == [(1, pytest.approx(math.log(0.6))), (2, pytest.approx(math.log(0.3)))]
    assert len(alternatives(rows(0, 0, 0), 9)) == 3


# What a stage changed.


def test_each_stage_knows_how_often_it_made_the_difference():
    # The chain picks 3, 2, 3; without the ban 3, 3, 3; greedily what it was left: 3, 2, 3.
    ban = Ban((4,))
    logits = rows([0, 0, 0, 9, 0], [0, 0, 8, 0, 9], [0, 0, 0, 9, 0])
    story = Request((0,), 3, 1), [0, 3, 2, 3], logits
    assert changed(Decoder((ban, Temperature(0.5)), Greedy()), *story) == (1, 0, 0)


def test_a_stage_keeps_its_state_where_another_is_left_out():
    # After the 3, never-twice removes it: 4 is next. The bias makes no difference to that.
    logits = rows([0, 0, 0, 9, 0], [0, 0, 0, 9, 8])
    story = Request((0,), 2, 1), [0, 3, 4], logits
    assert changed(Decoder((Bias(3, 1.0), NeverTwice()), Greedy()), *story) == (0, 1, 0)


def test_a_sampler_changes_a_pick_by_its_noise():
    decoder, request, token_ids, logits = tell(Decoder((TopK(3),), Sample()), ToySession(**ENDLESS), n=50)
    unlikely = sum(token_id != int(row.argmax()) for token_id, row in zip(token_ids[3:], logits, strict=True))
    plain = [pick.picked for pick in retrace(Decoder((), Sample()), request, token_ids, logits)]
    parted = sum(a != b for a, b in zip(plain, token_ids[3:], strict=True))
    assert changed(decoder, request, token_ids, logits) == (parted, unlikely)
    assert min(parted, unlikely) > 0


# What another decoder would say.


def test_top_k_1_forbids_all_but_the_likeliest():
    _, request, token_ids, logits = tell(Decoder((), Sample()), ToySession(**ENDLESS))
    verdict = whatif(Decoder((TopK(1),), Sample()), request, token_ids, logits)
    expected = [p for p, row in enumerate(logits, start=3) if int(row.argmax()) != token_ids[p]]
    assert 0 < len(expected) < 20
    assert verdict.forbidden == tuple((position, "top-k 1") for position in expected)
    assert (verdict.log_prob, verdict.bits_per_token, verdict.n_tokens) == (-math.inf, 0, 20)
    greedy = whatif(Decoder((), Greedy()), request, token_ids, logits)
    assert greedy.forbidden == tuple((position, "greedy") for position in expected)
    assert str(greedy.bits_per_token) == "0.0"  # not -0.0


def test_the_first_stage_to_remove_a_token_is_named_even_the_model():
    decoder = Decoder((Temperature(0.5), Ban((2,)), TopK(3)), Greedy())
    logits = rows([0, 1, 2, 3], [0, 1, -math.inf, 3], [0, 1, 2, 3])
    verdict = whatif(decoder, Request((0,), 3, 1), [0, 2, 2, 3], logits)
    assert verdict.forbidden == ((1, "ban"), (2, "model"))


def test_the_probability_of_a_story_is_that_of_its_tokens():
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]]).log()
    verdict = whatif(Decoder((TopK(2),), Sample()), Request((0,), 2, 1), [0, 2, 0], logits)
    expected = math.log(0.3 / 0.7) + math.log(0.4 / 0.7)
    assert verdict.log_prob == pytest.approx(expected, abs=1e-6)
    assert verdict.bits_per_token == pytest.approx(-expected / math.log(2) / 2, abs=1e-6)
    # The end counts, whichever EOS it is.
    ended = whatif(Decoder((), Sample()), Request((0,), 2, 1), [0, 2, 0], logits, eos_ids=frozenset({0, 1}))
    assert ended.log_prob == pytest.approx(math.log(0.3) + math.log(0.7), abs=1e-6)


def test_a_sampler_that_does_not_know_its_probabilities_still_forbids():
    request, logits = Request((0,), 2, 1), rows([0, 1, 2, 3], [3, 2, 1, 0])
    known = whatif(Decoder((), Mute()), request, [0, 2, 0], logits)
    assert (known.forbidden, known.log_prob, known.bits_per_token) == ((), None, None)
    banned = whatif(Decoder((Ban((2,)),), Mute()), request, [0, 2, 0], logits)
    assert (banned.forbidden, banned.log_prob) == (((1, "ban"),), -math.inf)


# Where two stories part.


def stories(a, b, row, **others):
    """Return two stories of one token over the same row of logits, each with the pick of its decoder."""
    tellings = []
    for decoder, seed in ((a, 1), (b, others.get("seed", 1))):
        request = Request((0,), 1, seed)
        (pick,) = retrace(decoder, request, [0, 0], row)
        tellings.append((decoder, request, [0, pick.picked], row))
    return tellings


def test_the_stage_that_removed_the_others_token_is_named():
    row = rows([0, 1, 2, 3])
    found = parting(*stories(Decoder((), Greedy()), Decoder((Temperature(0.5), Ban((3,))), Greedy()), row))
    assert (found.position, found.a_token, found.b_token) == (1, 3, 2)
    assert (found.cause, found.stage, found.side) == ("ban removed it", "ban", "b")
    back = parting(*stories(Decoder((Ban((3,)),), Greedy()), Decoder((), Greedy()), row))
    assert (back.a_token, back.b_token, back.cause, back.side) == (2, 3, "ban removed it", "a")


def test_top_k_parts_two_stories_of_one_seed(shipped, spec):
    prompt = shipped.tokenizer.encode("Once upon a time")
    plain = tell(spec("sample"), shipped.session, prompt, 40, seed=3)
    cut = tell(spec("top-k 5 | sample"), shipped.session, prompt, 40, seed=3)
    found = parting(plain, cut, eos_ids=shipped.session.eos_ids)
    at = next(n for n, (x, y) in enumerate(zip(plain[2], cut[2], strict=False)) if x != y)
    assert (found.position, found.a_token, found.b_token) == (at, plain[2][at], cut[2][at])
    assert (found.cause, found.stage, found.side) == ("top-k 5 removed it", "top-k 5", "b")


def test_temperature_turns_the_choice():
    session = ToySession(**ENDLESS)
    for seed in range(9):
        plain = tell(Decoder((TopK(20), Temperature(0.9)), Sample()), session, seed=seed)
        hot = tell(Decoder((TopK(20), Temperature(3)), Sample()), session, seed=seed)
        found = parting(plain, hot)
        assert found.stage in ("temperature 0.9", "temperature 3")
        assert found.side == ("a" if found.stage == "temperature 0.9" else "b")
        assert found.cause == f"{found.stage} turned the choice"


def test_a_stage_both_have_is_not_the_cause():
    # The first stage turns the choice from 2 to 1 in both, the second back to 2 in the first story alone.
    a = Decoder((Bias(1, 2.0), Bias(2, 3.0)), Greedy())
    b = Decoder((Bias(1, 2.0),), Greedy())
    found = parting(*stories(a, b, rows([0, 1, 2])))
    assert (found.a_token, found.b_token, found.stage, found.side) == (2, 1, "bias 2 by=3", "a")


def test_the_sampler_the_seed_and_the_model_part_stories_too():
    session = ToySession(**ENDLESS)
    greedy, lucky, other = (
        tell(decoder, session, seed=seed)
        for decoder, seed in ((Decoder((), Greedy()), 1), (Decoder((), Sample()), 1), (Decoder((), Sample()), 2))
    )
    found = parting(greedy, lucky)
    assert (found.stage, found.side, found.cause) == (
        "sampler",
        "",
        "the samplers pick differently: greedy and sample 1",
    )
    found = parting(lucky, other)
    assert (found.stage, found.side, found.cause) == ("seed", "", "the seeds differ: 1 and 2")
    found = parting(lucky, tell(Decoder((), Sample()), session, story=1))
    assert (found.stage, found.cause) == ("seed", "they are stories 0 and 1 of one seed")
    found = parting(lucky, tell(Decoder((), Sample()), ToySession(seed=9, **ENDLESS)))
    assert (found.stage, found.cause) == ("model", "the decoder is the same, but the model's logits are not")


def test_stories_that_do_not_part():
    session = ToySession(**ENDLESS)
    decoder = Decoder((MinP(0.01),), Sample())
    long, short = tell(decoder, session, n=20), tell(decoder, session, n=9)
    assert parting(long, long) is None
    assert parting(long, short) is None
    with pytest.raises(UsageError, match="different prompts"):
        parting(long, tell(decoder, session, prompt=(0, 4)))


def test_an_end_is_a_place_to_part():
    row = rows([0, 1, 2, 3])
    ended, going = Decoder((), Greedy()), Decoder((Ban((3,)),), Greedy())
    found = parting(*stories(ended, going, row), eos_ids=frozenset({3}))
    assert (found.a_token, found.b_token, found.cause) == (3, 2, "ban removed it")
    both = parting(*stories(ended, going, row), eos_ids=frozenset({2, 3}))
    assert both is None  # one end is as good as another
