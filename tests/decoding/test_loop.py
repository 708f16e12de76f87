"""The one loop: finished rows leave, a batch writes the same stories as single runs, and each story has one end."""

import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinystory.decoding import (
    Commit,
    Decoder,
    Draft,
    Finish,
    LogitsProcessor,
    Request,
    Sampler,
    Search,
    Token,
    latest_half,
    option,
)
from tinystory.decoding.loop import run
from tinystory.errors import TinystoryError, UsageError
from tinystory.testing import ToySession
from tinystory_decoders.greedy import Greedy
from tinystory_decoders.sample import Sample
from tinystory_decoders.temperature import Temperature
from tinystory_decoders.top_k import TopK

SAMPLE = Decoder((), Sample())
GREEDY = Decoder((), Greedy())
ENDLESS = {"eos_logit": -math.inf}


def request(prompt=(0, 5, 3), max_new_tokens=12, seed=1, **others):
    return Request(tuple(prompt), max_new_tokens, seed, **others)


def write(jobs, session=None):
    """Return the token ids and the finish reason of each job. Check that Finish comes once, as the last event."""
    session = session or ToySession()
    ids, reasons = [[] for _ in jobs], [None] * len(jobs)
    for index, event in run(session, jobs):
        assert reasons[index] is None, "an event after Finish"
        if isinstance(event, Finish):
            reasons[index] = event.reason
        else:
            ids[index] += [token.id for token in event.tokens]
    assert None not in reasons
    return list(zip(ids, reasons, strict=True))


def story(decoder=SAMPLE, session=None, **others):
    return write([(decoder, request(**others))], session)[0]


@dataclass(frozen=True)
class Broken(LogitsProcessor):
    name = "broken"
    where: str = option("call", help="where it fails")

    def fail(self, where):
        if self.where == where:
            raise ZeroDivisionError("oh\nno")

    def start(self, request):
        self.fail("start")

    def __call__(self, logits, step):
        self.fail("call")
        if self.where == "exit":
            raise SystemExit(3)
        if self.where == "shape":
            return logits[None]
        if self.where == "nothing":
            return None
        if self.where == "empty":
            return torch.full_like(logits, -torch.inf)
        return logits.clone().fill_(torch.nan) if self.where == "nan" else logits

    def observe(self, state, token_id, logits):
        self.fail("observe")


@dataclass(frozen=True)
class Always(Sampler):
    name = "always"
    token_id: int = option(help="the token to take")

    def __call__(self, logits, step):
        return self.token_id


@dataclass(frozen=True)
class Record(LogitsProcessor):
    """Notes its arguments. Its state counts the tokens."""

    name = "record"

    def start(self, request):
        return 0

    def __call__(self, logits, step):
        NOTES.append((list(step.token_ids), step.position, step.n_prompt, step.state, step.eos_ids))
        return logits

    def observe(self, state, token_id, logits):
        assert len(logits) == 32
        return state + 1


NOTES = []


@dataclass(frozen=True)
class Loop(Search):
    name = "loop"
    fails: bool = option(False, help="whether it fails")

    def search(self, session, request, chain):
        assert chain.sampler is None
        session.prefill([request.prompt_ids])
        if self.fails:
            raise ZeroDivisionError("oh no")
        yield Draft((Token(3, -1.0),))
        yield Commit((Token(4, -1.0), Token(5, -1.0)))
        yield Finish("length")


@dataclass(frozen=True)
class Rewinder(Loop):
    name = "rewinder"
    needs_rewind = True


@dataclass(frozen=True)
class Shuffler(Loop):
    name = "shuffler"
    needs_reorder = True


# What is written.


def test_greedy_follows_the_largest_logit():
    session = ToySession(**ENDLESS)
    ids, reason = story(GREEDY, session, max_new_tokens=5)
    expected = [0, 5, 3]
    for _ in range(5):
        expected.append(int(session.logits_after(expected).argmax()))
    assert (ids, reason) == (expected[3:], "length")


def test_logprobs_are_the_models_own_whatever_the_processors_do():
    session = ToySession(**ENDLESS)
    ids = [0, 5, 3]
    for _, event in run(session, [(Decoder((Temperature(0.2), TopK(3)), Sample()), request())]):
        for token in getattr(event, "tokens", ()):
            assert token.logprob == pytest.approx(float(session.logits_after(ids).log_softmax(-1)[token.id]), abs=1e-5)
            ids.append(token.id)
    assert len(ids) == 15


def test_one_token_costs_one_decode_of_one_token():
    session = ToySession(**ENDLESS)
    story(GREEDY, session, max_new_tokens=4)
    assert [tuple(call) for call in session.calls] == [("prefill", 1, 3), *[("decode", 1, 1)] * 3]


def test_a_stage_sees_the_story_and_its_own_state():
    NOTES.clear()
    session = ToySession(max_seq_len=6, **ENDLESS)
    (ids, _) = story(Decoder((Temperature(0.5), Record()), Greedy()), session, max_new_tokens=6, n_prompt=2)
    whole = [0, 5, 3, *ids]
    assert len(ids) == 6
    # The third token overflows the context, yet what a stage sees is the whole story.
    assert [(whole[: 3 + n], 3 + n, 2, n, frozenset({1})) for n in range(6)] == NOTES


@settings(deadline=None, max_examples=60)
@given(
    jobs=st.lists(
        st.tuples(
            st.sampled_from([SAMPLE, GREEDY, Decoder((TopK(4),), Sample(0.7)), Decoder((), None, Loop())]),
            st.lists(st.integers(0, 31), min_size=1, max_size=12),
            st.integers(0, 15),
            st.integers(0, 5),
            st.integers(0, 2),
        ),
        max_size=6,
    ),
    max_seq_len=st.integers(2, 20),
    can_reorder=st.booleans(),
)
def test_a_batch_writes_what_each_story_would_alone(jobs, max_seq_len, can_reorder):
    options = {"max_seq_len": max_seq_len, "can_reorder": can_reorder, "eos_logit": 4.0}
    jobs = [
        (decoder, request(prompt[: max_seq_len if decoder.search else None], limit, seed, story=number))
        for decoder, prompt, limit, seed, number in jobs
    ]
    alone = [write([job], ToySession(**options))[0] for job in jobs]
    assert write(jobs, ToySession(**options)) == alone


def test_finished_rows_leave_the_batch():
    session = ToySession(**ENDLESS)
    jobs = [(SAMPLE, request(max_new_tokens=limit)) for limit in (2, 5, 1, 5)]
    assert [len(ids) for ids, _ in write(jobs, session)] == [2, 5, 1, 5]
    steps = [(call.verb, call.rows) for call in session.calls]
    assert steps == [
        ("prefill", 4), ("reorder", 3), ("decode", 3), ("reorder", 2), ("decode", 2), ("decode", 2), ("decode", 2),
    ]  # fmt: skip


def test_a_session_that_cannot_reorder_writes_one_by_one():
    session = ToySession(can_reorder=False, **ENDLESS)
    events = list(run(session, [(SAMPLE, request(seed=seed, max_new_tokens=3)) for seed in range(3)]))
    assert [index for index, _ in events] == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert {call.rows for call in session.calls} == {1}


def test_no_jobs_and_searches_beside_chains():
    assert write([]) == []
    assert write(
        [(Decoder((), None, Loop()), request()), (GREEDY, request(max_new_tokens=1))], ToySession(**ENDLESS)
    ) == [
        ([3, 4, 5], "length"),
        (story(GREEDY, ToySession(**ENDLESS), max_new_tokens=1)),
    ]


# Endings.


def test_an_eos_ends_the_story_and_is_not_part_of_it():
    ids, reason = story(session=ToySession(eos_logit=4.0), max_new_tokens=500)
    assert reason == "eos"
    assert 1 not in ids
    assert story(session=ToySession(eos_logit=100.0)) == ([], "eos")


def test_limits():
    assert story(max_new_tokens=0) == ([], "length")
    session = ToySession()
    assert write([(SAMPLE, request(max_new_tokens=0))] * 2, session) == [([], "length")] * 2
    assert session.calls == []


def test_stop_is_heard_after_the_token():
    seen = []

    def stop():
        seen.append(None)
        return len(seen) > 3  # once before the first token, then after each

    session = ToySession(**ENDLESS)
    ids, reason = story(session=session, stop=stop)
    assert (len(ids), reason) == (3, "stop")
    assert len(session.calls) == 3


def test_cancel_comes_before_stop_and_before_any_work():
    session = ToySession()
    assert story(session=session, cancel=lambda: True, stop=lambda: True) == ([], "cancelled")
    assert story(session=session, stop=lambda: True) == ([], "stop")
    assert session.calls == []


def test_cancelling_one_story_leaves_the_others():
    session = ToySession(**ENDLESS)
    jobs = [(SAMPLE, request(seed=1)), (SAMPLE, request(seed=2, cancel=lambda: len(session.calls) >= 3))]
    (first, second) = write(jobs, session)
    assert (len(first[0]), first[1]) == (12, "length")
    assert (len(second[0]), second[1]) == (3, "cancelled")
    assert first == story(session=ToySession(**ENDLESS), seed=1)


def test_the_last_token_may_also_be_where_the_user_cancels():
    flags = iter([False, False, True])
    assert story(session=ToySession(**ENDLESS), max_new_tokens=2, cancel=lambda: next(flags))[1] == "cancelled"


@pytest.mark.parametrize("n_events", [0, 1, 4])
def test_closing_early_is_safe(n_events):
    session = ToySession(**ENDLESS)
    events = run(session, [(SAMPLE, request()), (Decoder((), None, Loop()), request())])
    list(itertools.islice(events, n_events))
    events.close()
    assert story(session=session) == story(session=ToySession(**ENDLESS))  # the session is good for the next story


# Overflow.


def test_when_the_context_is_full_the_window_says_what_stays():
    seen = []

    def window(token_ids, max_seq_len):
        seen.append((list(token_ids), max_seq_len))
        return [token_ids[0], *token_ids[-3:]]

    session = ToySession(max_seq_len=8, **ENDLESS)
    ids, reason = story(GREEDY, session, max_new_tokens=12, window=window)
    whole = [0, 5, 3, *ids]
    assert (len(ids), reason) == (12, "length")
    # 8 tokens fit, the 9th does not: 4 stay. Then every 5 tokens again.
    assert seen == [(whole[:9], 8), (whole[:14], 8)]
    # Step for step, what the model saw: the end of the story, its start again after each cut.
    for position, first in [(8, 0), (9, 6), (13, 6), (14, 11)]:
        context = whole[:position] if first == 0 else [0, *whole[first:position]]
        assert len(context) <= 8
        assert whole[position] == int(session.logits_after(context).argmax())


@settings(deadline=None, max_examples=100)
@given(
    prompt=st.lists(st.integers(2, 31), max_size=30),
    max_seq_len=st.integers(1, 12),
    window=st.sampled_from([latest_half, lambda ids, size: ids, lambda ids, size: ids[-1:], lambda *_: ()]),
)
def test_a_story_never_outgrows_the_model(prompt, max_seq_len, window):
    """This holds for every prompt and window. ToySession raises an error if a row is too long."""
    ids, reason = story(
        GREEDY, ToySession(max_seq_len=max_seq_len, **ENDLESS), prompt=[0, *prompt], max_new_tokens=30, window=window
    )
    assert (len(ids), reason) == (30, "length")


def test_the_usual_window_keeps_bos_and_the_latest_half():
    assert latest_half(list(range(100, 109)), 8) == [100, 105, 106, 107, 108]
    session = ToySession(max_seq_len=8, **ENDLESS)
    rows = []
    for _ in run(session, [(SAMPLE, request(max_new_tokens=40))]):
        rows += session.rows
    assert {row[0] for row in rows} == {0}


def test_the_position_counts_on_when_old_text_leaves():
    NOTES.clear()
    story(Decoder((Record(),), Sample()), ToySession(max_seq_len=6, **ENDLESS), max_new_tokens=20)
    assert [position for _, position, *_ in NOTES] == list(range(3, 23))


# Noise.


def test_one_seed_gives_one_story_and_others_differ():
    stories = [
        story(session=ToySession(**ENDLESS), seed=seed, story=number) for seed in range(4) for number in range(3)
    ]
    assert stories[0] == story(session=ToySession(**ENDLESS), seed=0)
    assert len({tuple(ids) for ids, _ in stories}) == 12


def test_a_story_goes_on_as_if_it_had_never_stopped():
    """The noise depends only on position and seed, so undo, retry and continue give the same story as one long run."""
    whole, _ = story(session=ToySession(**ENDLESS), max_new_tokens=10)
    rest, _ = story(session=ToySession(**ENDLESS), prompt=(0, 5, 3, *whole[:4]), max_new_tokens=6, n_prompt=3)
    assert rest == whole[4:]


@pytest.mark.parametrize("seed", range(8))
def test_two_decoders_with_one_seed_part_only_where_they_must(seed):
    session = ToySession(**ENDLESS)
    plain, _ = story(SAMPLE, session, seed=seed, max_new_tokens=20)
    cut, _ = story(Decoder((TopK(8),), Sample()), session, seed=seed, max_new_tokens=20)
    same = next((n for n, (a, b) in enumerate(zip(plain, cut, strict=True)) if a != b), None)
    if same is not None:
        logits = session.logits_after([0, 5, 3, *plain[:same]])
        assert plain[same] not in logits.topk(8).indices
        assert cut[same] in logits.topk(8).indices


def test_two_decoders_with_one_seed_do_part_and_do_agree():
    """The test above would show nothing if two stories never differed, or always from the first token on."""
    session = ToySession(**ENDLESS)
    shared = []
    for seed in range(8):
        plain, _ = story(SAMPLE, session, seed=seed, max_new_tokens=20)
        cut, _ = story(Decoder((TopK(8),), Sample()), session, seed=seed, max_new_tokens=20)
        shared.append(next((n for n, (a, b) in enumerate(zip(plain, cut, strict=True)) if a != b), 20))
    assert max(shared) >= 3
    assert min(shared) < 20


# Failures.


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("start", "decoder stage broken failed: ZeroDivisionError: oh"),
        ("call", "decoder stage broken failed: ZeroDivisionError: oh"),
        ("exit", "decoder stage broken failed: SystemExit: 3"),
        ("observe", "decoder stage broken failed: ZeroDivisionError: oh"),
        ("shape", r"decoder stage broken failed: ValueError: gave logits of shape \(1, 32\), not \(32,\)"),
        ("nothing", "decoder stage broken failed: TypeError: gave a NoneType, not a tensor"),
        ("empty", "no token is left: temperature | broken removed all of them, or gave NaN or +inf, at position 3"),
        ("nan", "no token is left: temperature | broken removed all of them, or gave NaN or +inf, at position 3"),
    ],
)
def test_a_stage_that_fails_is_named_in_one_line(where, message):
    decoder = Decoder((Temperature(0.5), Broken(where)), Sample())
    with pytest.raises(TinystoryError, match=message.replace("|", r"\|").replace("+", r"\+")) as caught:
        story(decoder)
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, UsageError)


@pytest.mark.parametrize("token_id", [-1, 32, 10**9])
def test_a_sampler_that_picks_no_token_is_named(token_id):
    with pytest.raises(TinystoryError, match=f"decoder stage always failed: .*picked token {token_id}"):
        story(Decoder((), Always(token_id)))


def test_a_search_that_fails_is_named():
    with pytest.raises(TinystoryError, match="decoder stage loop failed: ZeroDivisionError: oh no"):
        story(Decoder((), None, Loop(fails=True)))


@pytest.mark.parametrize(("search", "verb"), [(Rewinder(), "rewind"), (Shuffler(), "reorder")])
def test_a_search_is_refused_by_a_model_that_cannot_do_what_it_needs(search, verb):
    decoder = Decoder((), None, search)
    assert story(decoder, ToySession()) == ([3, 4, 5], "length")
    with pytest.raises(UsageError, match=f"{search.name} has to {verb} the model's cache, and this model cannot"):
        story(decoder, ToySession(**{f"can_{verb}": False}))


@pytest.mark.parametrize("bad", [{"prompt": ()}, {"max_new_tokens": -1}])
def test_a_request_that_makes_no_sense(bad):
    with pytest.raises(UsageError):
        request(**bad)
