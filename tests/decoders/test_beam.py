"""Beam search: equal to transformers, equal to a full search of a small tree, and a stream that takes nothing back."""

import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinystory.checkpoint import load_model, read_header
from tinystory.decoding import Commit, Decoder, Draft, Finish, LogitsProcessor, Request
from tinystory.decoding.loop import run
from tinystory.errors import TinystoryError, UsageError
from tinystory.session.native import NativeSession
from tinystory.testing import ToySession, conformance
from tinystory_decoders.beam import Beam, best
from tinystory_decoders.greedy import Greedy
from tinystory_decoders.temperature import Temperature
from tinystory_decoders.top_k import TopK

MODELS = Path(__file__).resolve().parents[2] / "tinystory" / "models"
ENDLESS = {"eos_logit": -math.inf}


@dataclass(frozen=True)
class NoRepeat(LogitsProcessor):
    """Remove the tokens that have followed the last token before. The state is the set of these pairs."""

    name = "no-pair-twice"

    def start(self, request):
        return frozenset(itertools.pairwise(request.prompt_ids)), request.prompt_ids[-1]

    def __call__(self, logits, step):
        pairs, last = step.state
        assert last == step.token_ids[-1], "a hypothesis has another one's state"
        assert pairs == frozenset(itertools.pairwise(step.token_ids))
        return logits.index_fill(0, torch.tensor([b for a, b in pairs if a == last], dtype=torch.long), -math.inf)

    def observe(self, state, token_id, logits):
        pairs, last = state
        return pairs | {(last, token_id)}, token_id


def events_of(decoder, session=None, prompt=(0, 5, 3), max_new_tokens=12, **others):
    decoder = decoder if isinstance(decoder, Decoder) else Decoder((), None, decoder)
    jobs = [(decoder, Request(tuple(prompt), max_new_tokens, 1, **others))]
    return [event for _, event in run(session or ToySession(), jobs)]


def written(*arguments, **others):
    """Return the token ids and the finish reason."""
    events = events_of(*arguments, **others)
    return [token.id for event in events if isinstance(event, Commit) for token in event.tokens], events[-1].reason


# Parity.


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def twins(request, tmp_path_factory):
    """Return a random model of transformers, and our session with the same weights."""
    import transformers

    sizes = {"vocab_size": 61, "bos_token_id": 0, "eos_token_id": [0, 3, 17, 22, 40]}
    if request.param == "gpt2":
        config = transformers.GPT2Config(**sizes, n_positions=48, n_embd=24, n_layer=2, n_head=3)
        theirs = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.LlamaConfig(**sizes, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
            num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=48)  # fmt: skip
        theirs = transformers.LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.12 + (parameter.ndim == 1))
    directory = tmp_path_factory.mktemp(request.param)
    theirs.eval().save_pretrained(directory)
    header = read_header(directory)
    return theirs, NativeSession(load_model(header), header.bos_id, header.eos_ids)


def theirs_written(model, prompt, max_new_tokens, **options):
    """Return the stories of transformers' beam search without EOS tokens."""
    ids = torch.tensor([prompt])
    stories = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=0,
        **options,
    )
    eos_ids = model.generation_config.eos_token_id
    eos_ids = eos_ids if isinstance(eos_ids, list) else [eos_ids]
    new = [story[len(prompt) :] for story in stories.tolist()]
    return [list(itertools.takewhile(lambda token_id: token_id not in eos_ids, ids)) for ids in new]


def assert_parity(twins, width, settings):
    """Compare beams of one width. Return how many stories have ended."""
    model, session = twins
    n_ended = 0
    for number, (penalty, early) in enumerate(settings):
        prompt = [0, 5 + number, 9, 1 + width]
        ids, reason = written(Beam(width, penalty, early), session, prompt, 20)
        options = {"num_beams": width, "length_penalty": penalty, "early_stopping": early}
        assert [ids] == theirs_written(model, prompt, 20, **options), (width, options)
        n_ended += reason == "eos"
    return n_ended


@pytest.mark.parity
def test_beam_parity(twins):
    few = [(1.0, False), (0.6, True), (0.0, False), (-1.0, True)]
    n_ended = [assert_parity(twins, width, few[width % 2 :: 2]) for width in range(1, 9)]
    assert sum(n_ended) >= 2, "hardly a story came to its end"


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("width", range(1, 9))
def test_beam_parity_for_every_setting(twins, width):
    assert_parity(twins, width, itertools.product([0.0, 0.6, 1.0, 2.0, -1.0], [False, True]))


@pytest.mark.parity
def test_siblings_are_the_sequences_that_transformers_returns(twins):
    model, session = twins
    ours = [written(Beam(5), session, [0, 11, 2], 12, story=number)[0] for number in range(5)]
    assert ours == theirs_written(model, [0, 11, 2], 12, num_beams=5, num_return_sequences=5)


@pytest.mark.parity
def test_beam_parity_with_processors(twins):
    from transformers import (
        LogitsProcessorList,
        NoRepeatNGramLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
    )

    model, session = twins
    cases = [
        ((TopK(12),), [TopKLogitsWarper(12)]),
        ((Temperature(0.7), TopK(20)), [TemperatureLogitsWarper(0.7), TopKLogitsWarper(20)]),
        ((NoRepeat(),), [NoRepeatNGramLogitsProcessor(2)]),
    ]
    for processors, oracle in cases:
        ids, _ = written(Decoder(processors, None, Beam(4)), session, [0, 5, 9, 5], 24)
        options = {"num_beams": 4, "logits_processor": LogitsProcessorList(oracle)}
        assert [ids] == theirs_written(model, [0, 5, 9, 5], 24, **options), processors


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize(
    ("width", "penalty", "early"), [(2, 1.0, False), (4, 1.0, False), (4, 0.6, True), (5, 2.0, False)]
)
def test_beam_parity_on_the_shipped_model(width, penalty, early):
    from transformers import AutoModelForCausalLM

    from tinystory.session.loading import load

    loaded = load(str(MODELS / "default"))
    theirs = AutoModelForCausalLM.from_pretrained(MODELS / "default", dtype=torch.float32)
    for text in ("Once upon a time", "Tom and his dog", "The sun was hot."):
        prompt = loaded.tokenizer.encode(text)
        ids, _ = written(Beam(width, penalty, early), loaded.session, prompt, 120)
        options = {"num_beams": width, "length_penalty": penalty, "early_stopping": early}
        assert [ids] == theirs_written(theirs, prompt, 120, **options), text


# The algorithm, in float64, on a session without weights.


def log_probabilities(session, token_ids):
    return session.logits_after(token_ids).double().log_softmax(dim=-1).tolist()


def every_story(session, prompt, limit):
    """Return all possible stories of this length: (sum of log-probabilities, ids, number of picks)."""
    going = [(0.0, ())]
    for length in range(1, limit + 1):
        longer = []
        for total, ids in going:
            for token_id, logprob in enumerate(log_probabilities(session, [*prompt, *ids])):
                if token_id in session.eos_ids:
                    yield total + logprob, ids, length
                elif length == limit:
                    yield total + logprob, (*ids, token_id), length
                else:
                    longer.append((total + logprob, (*ids, token_id)))
        going = longer


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("penalty", [0.0, 1.0, 3.0, -2.0])
def test_a_beam_as_wide_as_the_tree_is_exhaustive(seed, penalty):
    session = ToySession(vocab_size=4, seed=seed)
    stories = list(every_story(session, (0, 2), 3))
    ranked = sorted(stories, key=lambda story: story[0] / story[2] ** penalty, reverse=True)
    for number in (0, 1, 7):
        ids, _ = written(Beam(60, penalty), ToySession(vocab_size=4, seed=seed), (0, 2), 3, story=number)
        assert tuple(ids) == ranked[number][1]


@given(st.integers(0, 99), st.integers(1, 15), st.sampled_from([0.0, 1.0, -3.0, 4.0]))
@settings(deadline=None, max_examples=30)
def test_width_one_is_greedy(seed, limit, penalty):
    greedy = written(Decoder((TopK(9),), Greedy()), ToySession(seed=seed), max_new_tokens=limit)
    assert written(Decoder((TopK(9),), None, Beam(1, penalty)), ToySession(seed=seed), max_new_tokens=limit) == greedy


def test_of_equal_candidates_the_first_come_first():
    scores = torch.tensor([0.0, 2.0, 1.0, -math.inf, 2.0, 1.0, 1.0])
    assert best(scores, 4) == [(2.0, 1), (2.0, 4), (1.0, 2), (1.0, 5)]
    assert len(best(scores, 99)) == 6


def test_early_stopping_stops_early_and_may_miss_the_best():
    fewer = worse = 0
    for seed in range(12):
        sessions = [ToySession(seed=seed, vocab_size=6), ToySession(seed=seed, vocab_size=6)]
        late, early = (
            events_of(Beam(3, 2.0, stop), session)[-1] for stop, session in zip((False, True), sessions, strict=True)
        )
        assert len(sessions[1].calls) <= len(sessions[0].calls)
        assert early.statistics["score"] <= late.statistics["score"]
        fewer += len(sessions[1].calls) < len(sessions[0].calls)
        worse += early.statistics["score"] < late.statistics["score"]
    assert fewer >= worse > 0


def test_enough_stories_go_on_however_many_ways_to_end_there_are():
    """Four of six tokens end a story and are second to fifth, and still two stories go on."""

    class ManyEnds(ToySession):
        def __init__(self):
            super().__init__(vocab_size=6)
            self.eos_ids = frozenset({1, 2, 3, 4})

        def logits_after(self, token_ids):
            return torch.tensor([6.0, 5.0, 5.0, 5.0, 5.0, 0.0])

    session = ManyEnds()
    written(Beam(2), session, max_new_tokens=2)
    assert [call.rows for call in session.calls] == [1, 2, 2], "prefill, reorder, decode"


# Processors.


@given(st.integers(0, 50))
@settings(deadline=None, max_examples=15)
def test_every_hypothesis_has_a_state_of_its_own(seed):
    """The processor itself checks that the state is the story's."""
    session = ToySession(vocab_size=6, seed=seed, eos_logit=-2.0)
    ids, _ = written(Decoder((NoRepeat(),), None, Beam(4)), session, (0, 2), 20)
    pairs = list(itertools.pairwise((0, 2, *ids)))
    assert len(set(pairs)) == len(pairs)


def test_removed_tokens_are_no_candidates():
    """With fewer than `width` continuations, the beam is narrower for a while and follows no impossible story."""
    for k in (1, 2):
        ids, reason = written(Decoder((TopK(k),), None, Beam(8)), ToySession(**ENDLESS))
        assert (len(ids), reason) == (12, "length")
        assert k > 1 or ids == written(Decoder((), Greedy()), ToySession(**ENDLESS))[0]


# The stream.


@given(st.integers(0, 200), st.integers(1, 6), st.integers(0, 7), st.booleans())
@settings(deadline=None, max_examples=60)
def test_what_was_told_is_the_story_with_the_score(seed, width, story, early):
    """The result begins with every committed token, and its score is that of the committed tokens."""
    session = ToySession(seed=seed, vocab_size=12)
    *events, last = events_of(Beam(width, 2.0, early), session, max_new_tokens=15, story=story)
    tokens = [token for event in events if isinstance(event, Commit) for token in event.tokens]
    ids = [token.id for token in tokens] + ([1] if last.reason == "eos" else [])
    own = [log_probabilities(session, (0, 5, 3, *ids[:n]))[token_id] for n, token_id in enumerate(ids)]
    assert last.statistics["score"] == pytest.approx(sum(own) / len(ids) ** 2, abs=1e-4)
    assert [token.logprob for token in tokens] == pytest.approx(own[: len(tokens)], abs=1e-5)
    assert all(len(event.tokens) <= 15 for event in events)
    assert 0 <= last.statistics["beams"] <= width
    assert last.statistics["finished"] >= 1


def test_what_all_hypotheses_share_is_told_at_once():
    """Forced tokens are certain: each is committed in the step that finds it."""
    session = ToySession(**ENDLESS)
    events = events_of(Decoder((TopK(1),), None, Beam(3)), session, max_new_tokens=5)
    assert [type(event) for event in events] == [Commit] * 5 + [Finish]
    for event in events_of(Beam(3), ToySession(**ENDLESS), max_new_tokens=9)[:-1]:
        if isinstance(event, Commit):
            return
    raise AssertionError("nothing was told before the end")


@pytest.mark.parametrize("n_calls", range(1, 9))
def test_a_cancel_keeps_what_was_shown(n_calls):
    session = ToySession(**ENDLESS)
    n_run = lambda: sum(call.verb in ("prefill", "decode") for call in session.calls)  # noqa: E731
    events = events_of(Beam(4), session, cancel=lambda: n_run() >= n_calls)
    assert n_run() == n_calls
    assert events[-1].reason == "cancelled"
    told = [token.id for event in events if isinstance(event, Commit) for token in event.tokens]
    assert len(told) == n_calls
    shown, so_far = [], []
    for event in events:
        if isinstance(event, Draft):
            shown = so_far + [token.id for token in event.tokens]
        elif isinstance(event, Commit):
            so_far += [token.id for token in event.tokens]
    assert not shown or len(shown) < n_calls or shown == told


def test_a_stop_ends_the_story_at_its_token():
    told = []
    request = Request((0, 5, 3), 12, 1, stop=lambda: len(told) >= 2)
    events = run(ToySession(**ENDLESS), [(Decoder((), None, Beam(4)), request)])
    last = [told.extend(event.tokens) if isinstance(event, Commit) else event for _, event in events][-1]
    assert (len(told), last.reason) == (2, "stop")


# Sessions.


@pytest.mark.parametrize("width", [1, 3, 5])
def test_a_beam_goes_on_past_the_context(width):
    """When the context is full, every row begins again with the ids that the window leaves."""
    session = ToySession(max_seq_len=9, **ENDLESS)
    ids, reason = written(Beam(width), session, max_new_tokens=30)
    assert (len(ids), reason) == (30, "length")
    # The toy model looks back three tokens, the shortest window here: outgrowing the context changes nothing.
    assert ids == written(Beam(width), ToySession(**ENDLESS), max_new_tokens=30)[0]


def test_a_beam_costs_one_row_for_each_story_alive():
    session = ToySession(**ENDLESS)
    written(Beam(4), session, max_new_tokens=6)
    decodes = [call for call in session.calls if call.verb == "decode"]
    assert [call.tokens for call in decodes] == [4] * 5
    assert sum(call.verb == "prefill" for call in session.calls) == 1


@pytest.mark.parametrize(
    "stage", [Beam(), Beam(1), Beam(2, 0.0), Beam(7, 2.5, early_stopping=True), Beam(3, -1.0), Beam(30)]
)
def test_beams_conform(stage):
    assert conformance(stage) == []


def test_beams_behind_processors_conform():
    assert conformance(Decoder((Temperature(0.8), TopK(5)), None, Beam(3))) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width must be an integer ≥ 1 and ≤ 100"),
        ({"length_penalty": math.inf}, "length-penalty must be a number ≥ -10 and ≤ 10"),
    ],
)
def test_ranges(options, message):
    with pytest.raises(UsageError, match=message):
        Beam(**options)


def test_a_model_that_cannot_reorder_is_refused_in_one_line():
    with pytest.raises(TinystoryError, match="beam has to reorder"):
        events_of(Beam(), ToySession(can_reorder=False))
