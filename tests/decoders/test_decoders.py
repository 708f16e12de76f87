"""The built-in stages and the conformance kit: equal to transformers, exact distributions, the contract."""

import math
import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from logits_cases import (
    HALVES,
    INF,
    REQUEST,
    STEP,
    assert_drawn_by,
    assert_parity,
    kept,
    many_examples,
    many_logits,
    probabilities,
    step_at,
)

from tinystory.decoding import (
    Commit,
    Decoder,
    Draft,
    Finish,
    LogitsProcessor,
    Sampler,
    Search,
    Token,
    draw,
    option,
)
from tinystory.decoding.options import options_of
from tinystory.decoding.plugins import discover, load_file
from tinystory.decoding.spec import parse_spec
from tinystory.errors import UsageError
from tinystory.noise import Noise
from tinystory.testing import ToySession, conformance
from tinystory_decoders.greedy import Greedy
from tinystory_decoders.min_p import MinP
from tinystory_decoders.sample import Sample
from tinystory_decoders.temperature import Temperature
from tinystory_decoders.top_k import TopK
from tinystory_decoders.top_p import TopP, worth_of_last
from tinystory_decoders.typical import Typical

# Parity. transformers is imported inside, so that the other tests do not wait for it.


@pytest.mark.parity
@given(many_logits, st.floats(1e-3, 1e3) | st.just(0.8))
@many_examples
def test_temperature_parity(logits, t):
    from transformers.generation.logits_process import TemperatureLogitsWarper

    assert_parity(Temperature(t), TemperatureLogitsWarper(t), logits)


@pytest.mark.parity
@given(many_logits, st.integers(1, 45))
@many_examples
def test_top_k_parity(logits, k):
    from transformers.generation.logits_process import TopKLogitsWarper

    assert_parity(TopK(k), TopKLogitsWarper(k), logits)


@pytest.mark.parity
@given(many_logits, probabilities)
@many_examples
def test_top_p_parity(logits, p):
    from transformers.generation.logits_process import TopPLogitsWarper

    assert_parity(TopP(p), TopPLogitsWarper(p), logits)


@pytest.mark.parity
@given(many_logits, probabilities)
@many_examples
def test_min_p_parity(logits, p):
    from transformers.generation.logits_process import MinPLogitsWarper

    assert_parity(MinP(p), MinPLogitsWarper(p), logits)


@pytest.mark.parity
@pytest.mark.parametrize("seed", range(4))
def test_parity_on_a_whole_vocabulary(seed):
    """Compare float32 sums over many tokens, with half of the logits tied and some removed."""
    from transformers.generation.logits_process import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(16_384, generator=generator) * 3
    logits[::2] = logits[::2].round()
    logits[5::7] = -INF
    for ours, warper in [
        (TopK(1000), TopKLogitsWarper(1000)),
        (TopP(0.5), TopPLogitsWarper(0.5)),
        (TopP(0.999), TopPLogitsWarper(0.999)),
        (MinP(0.01), MinPLogitsWarper(0.01)),
    ]:
        assert_parity(ours, warper, logits)


@pytest.mark.parity
@pytest.mark.parametrize("mass", [0.3, 0.9])
def test_parity_where_the_cut_is_among_the_likeliest(mass):
    """With a large vocabulary and a rather certain model, not all tokens are sorted."""
    from transformers.generation.logits_process import TopPLogitsWarper, TypicalLogitsWarper

    logits = torch.randn(5000, generator=torch.Generator().manual_seed(1)) * 6
    assert worth_of_last(logits.numpy(), logits.softmax(dim=-1).numpy(), mass, doubt=1e-4) is not None
    assert_parity(TopP(mass), TopPLogitsWarper(mass), logits)
    assert_parity(Typical(mass), TypicalLogitsWarper(mass), logits)


LARGE = torch.cat([HALVES, torch.full((5000,), -INF)])


@pytest.mark.parametrize(
    ("logits", "mass", "worth"),
    [
        (LARGE, 0.49, HALVES[0]),
        (LARGE, 0.74, HALVES[1]),
        (LARGE, 0.75 + 1e-6, None),  # so near that rounding decides
        (LARGE, 0.8, None),  # between equals
        (torch.arange(5000.0) / 5000, 0.9, None),  # farther down
    ],
)
def test_the_cut_that_needs_no_sort(logits, mass, worth):
    assert worth_of_last(logits.numpy(), logits.exp().numpy(), mass, doubt=1e-5) == worth


# By hand, on the distribution [1/2, 1/4, 1/8, 1/8].


@pytest.mark.parametrize(
    ("stage", "stay"),
    [
        (TopK(1), {0}),
        (TopK(2), {0, 1}),
        (TopK(3), {0, 1, 2, 3}),  # the third and the fourth are equal
        (TopK(99), {0, 1, 2, 3}),
        (TopP(0.01), {0}),
        (TopP(0.49), {0}),
        (TopP(0.51), {0, 1}),
        (TopP(0.74), {0, 1}),
        (TopP(0.99), {0, 1, 2, 3}),
        (MinP(0.24), {0, 1, 2, 3}),
        (MinP(0.26), {0, 1}),
        (MinP(0.51), {0}),
        (MinP(1.0), {0}),
    ],
)
def test_kept_by_hand(stage, stay):
    output = stage(HALVES, STEP)
    assert kept(output) == stay
    assert all(output[token_id] == HALVES[token_id] for token_id in stay)


def test_top_p_cuts_between_equals():
    stay = kept(TopP(0.76)(HALVES, STEP))
    assert stay in ({0, 1, 2}, {0, 1, 3})


def test_temperature_by_hand():
    assert Temperature(0.5)(torch.tensor([1.0, -2.0, -INF]), STEP).tolist() == [2.0, -4.0, -INF]


@pytest.mark.parametrize(("logits", "token_id"), [([0, 3, 3, -INF], 1), ([-INF, -5, -INF], 1), ([2, 2, 2], 0)])
def test_greedy_takes_the_lowest_id_of_equals(logits, token_id):
    assert Greedy()(torch.tensor(logits, dtype=torch.float32), STEP) == token_id


# Properties.


@given(many_logits, probabilities)
@many_examples
def test_top_p_keeps_the_smallest_set_that_reaches_p(logits, p):
    stay = kept(TopP(p)(logits, STEP))
    probs = logits.double().softmax(dim=-1)
    mass = float(probs[list(stay)].sum())
    assert stay
    assert mass >= p - 1e-5
    if len(stay) > 1:
        assert mass - float(probs[list(stay)].min()) < p + 1e-5


@given(many_logits, st.sampled_from([TopK(1), TopK(3), TopP(0.3), TopP(0.9), MinP(0.05), MinP(0.5)]))
@many_examples
def test_truncation_only_removes_and_from_the_bottom(logits, stage):
    output = stage(logits, STEP)
    stay = kept(output)
    assert all(output[token_id] == logits[token_id] for token_id in stay)
    gone = kept(logits) - stay
    assert max((float(logits[i]) for i in gone), default=-INF) <= min(float(logits[i]) for i in stay)


@given(many_logits)
@many_examples
def test_weak_settings_keep_everything(logits):
    assert TopK(len(logits))(logits, STEP).equal(logits)
    assert kept(MinP(0.0)(logits, STEP)) == kept(logits)
    likely = logits.softmax(dim=-1) > 1e-6
    assert kept(TopP(1 - 1e-7)(logits, STEP)) >= kept(logits.masked_fill(~likely, -INF))


@given(
    st.lists(st.integers(-20, 20), min_size=1, max_size=20),
    st.integers(-1000, 1000),
    st.sampled_from([TopK(3), TopP(0.7), MinP(0.1)]),
)
@many_examples
def test_adding_a_constant_changes_nothing(values, shift, stage):
    logits = torch.tensor(values, dtype=torch.float32)  # whole numbers: the sums are exact in float32
    assert kept(stage(logits, STEP)) == kept(stage(logits + shift, STEP))


@given(many_logits, st.integers(1, 50), st.floats(0.1, 10), st.randoms(use_true_random=False))
@many_examples
def test_a_draw_is_coupled(logits, position, temperature, shuffle):
    """Each token has its own noise, so removing tokens that were not drawn changes nothing."""
    stage, step = Sample(temperature), step_at(position)
    token_id = stage(logits, step)
    assert logits[token_id] > -INF
    losers = [i for i in range(len(logits)) if i != token_id and shuffle.random() < 0.5]
    fewer = logits.clone()
    fewer[losers] = -INF
    assert stage(fewer, step) == token_id
    assert stage(logits, step) == token_id


@pytest.mark.parametrize(
    "stage",
    [Greedy(), Sample(), Sample(0.3), Sample(1e-300), Sample(1e300), Temperature(0.7), Temperature(1e-300),
     Temperature(1e300), TopK(1), TopK(3), TopK(10**30), TopP(0.5), TopP(1e-9), TopP(1.0), MinP(), MinP(1.0),
     MinP(0.0)],
)  # fmt: skip
def test_built_in_stages_conform(stage):
    assert conformance(stage) == []


def test_a_whole_chain_conforms():
    assert conformance(Decoder((Temperature(0.8), TopK(5), MinP(0.01), TopK(4)), Sample(0.9))) == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TopK(0), "k must be an integer ≥ 1"),
        (lambda: TopP(0.0), "p must be a number > 0 and ≤ 1"),
        (lambda: TopP(1.1), "p must be a number > 0 and ≤ 1"),
        (lambda: MinP(-0.1), "p must be a number ≥ 0 and ≤ 1"),
        (lambda: Temperature(0.0), "t must be a number > 0"),
        (lambda: Sample(math.nan), "temperature must be a number > 0"),
    ],
)
def test_ranges(make, message):
    with pytest.raises(UsageError, match=message):
        make()


@pytest.mark.parametrize(
    ("advice", "specs"),
    [
        (", or write `greedy`", "sample 0|sample 0.0|sample -1|temperature 0|temperature -1|mirostat 0"),
        (
            ", or leave the stage out",
            "top-k 0|top-k -1|top-k 0.0|top-p 0|top-p 0.0|top-n-sigma 0|top-n-sigma -1|typical 0|min-p -1|top-a -1|"
            "epsilon 0|epsilon 1|eta 0|top-h 0|xtc -1|xtc threshold=1|xtc threshold=0|no-repeat 0|"
            "repetition-penalty 0|dry -1|dry base=0|dynamic-temperature low=0 high=1|guidance 0|min-length -1|"
            "mirostat version=0|beam 0|diverse-beam 0|best-of 0|speculative k=0|contrastive 0|watermark gamma=0",
        ),
        (", or write 0 for all tokens", "repetition-penalty 1.1 window=-1"),
        ("", "sample x|sample nan|sample inf|sample 1e999|sample 0,8|beam 200|top-p 1.5|top-k 40.5|xtc threshold=2"),
    ],
)
def test_numbers_that_switch_off_other_programs_get_advice(advice, specs):
    registry = discover(user_folder=None)
    for spec in specs.split("|"):
        with pytest.raises(UsageError) as caught:
            parse_spec(spec, registry)
        assert str(caught.value).endswith(f"`{advice}"), caught.value


def test_python_callers_get_the_same_advice():
    for make, advice in [(lambda: TopK(0), "leave the stage out"), (lambda: Sample(0.0), "write `greedy`")]:
        with pytest.raises(UsageError, match=f", or {advice}$"):
            make()
    with pytest.raises(UsageError, match=r"unlikely ones\)$"):
        Sample(math.nan)


def test_numbers_that_change_nothing_are_allowed():
    registry = discover(user_folder=None)
    specs = (
        "temperature 1|top-p 1|min-p 0|typical 1|top-a 0|xtc 0|dry 0|repetition-penalty 1|frequency-penalty 0|"
        "presence-penalty 0|guidance 1|min-length 0|watermark delta=0|dynamic-temperature low=1 high=1|"
        "expert-amateur alpha=0 beta=0"
    )
    for spec in specs.split("|"):
        assert parse_spec(spec, registry).chain.processors == (), spec


def test_neutral_values_switch_off():
    neutral = (Temperature(1.0), TopP(1.0), MinP(0.0))
    assert Decoder((*neutral, TopK(3)), Sample()).chain.processors == (TopK(3),)


# Draws follow the exact distribution: 20,000 of them, seed fixed.


@pytest.mark.parametrize(
    ("processors", "temperature", "probs"),
    [
        ((), 1.0, [0.5, 0.25, 0.125, 0.125]),
        ((), 0.5, np.array([16, 4, 1, 1]) / 22),
        ((Temperature(2.0),), 0.25, np.array([16, 4, 1, 1]) / 22),
        ((TopP(0.7),), 1.0, [2 / 3, 1 / 3, 0, 0]),
        ((TopK(2), Temperature(0.5)), 1.0, [0.8, 0.2, 0, 0]),
        ((MinP(0.2),), 1.0, [0.5, 0.25, 0.125, 0.125]),
    ],
)
def test_draws_follow_the_distribution(processors, temperature, probs):
    chain = Decoder(processors, Sample(temperature)).chain
    state = chain.start(REQUEST)
    logits, _ = chain.process(HALVES, STEP, state)
    assert_drawn_by(lambda position: chain.sampler(logits, step_at(position)), probs)


def test_siblings_and_seeds_draw_differently():
    logits = torch.zeros(1000)
    draws = {draw(logits, Noise(seed, "token", story, 5)) for seed in range(3) for story in range(3)}
    assert len(draws) == 9


# The conformance kit finds what it is for.


class Bad(LogitsProcessor):
    """Do nothing."""

    name = "bad"

    def __call__(self, logits, step):
        return logits


def spoiled(**members):
    """A processor with one thing wrong."""
    return dataclass(frozen=True)(type("Spoiled", (Bad,), {"__doc__": "Do harm.", "name": "bad", **members}))()


def in_place(self, logits, step):
    logits[0] = 0.0
    return logits


def own_history(self, logits, step):
    step.token_ids.append(0)
    return logits.clone()


def mutable_state(self, state, token_id, logits):
    state.append(token_id)
    return state


@pytest.mark.parametrize(
    ("stage", "check"),
    [
        (spoiled(__call__=in_place), "purity"),
        (spoiled(__call__=own_history), "purity"),
        (spoiled(__call__=lambda self, logits, step: logits + random.random()), "determinism"),
        (spoiled(__call__=lambda self, logits, step: torch.full_like(logits, -INF)), "support"),
        (spoiled(__call__=lambda self, logits, step: logits.nan_to_num(neginf=-50.0)), "support"),
        (spoiled(__call__=lambda self, logits, step: logits - logits.min()), "finite or −inf"),
        (spoiled(__call__=lambda self, logits, step: logits + torch.inf), "finite or −inf"),
        (spoiled(__call__=lambda self, logits, step: logits + logits[1]), "call"),
        (spoiled(__call__=lambda self, logits, step: logits[None]), "output"),
        (spoiled(__call__=lambda self, logits, step: logits.double()), "output"),
        (spoiled(__call__=lambda self, logits, step: logits.numpy()), "output"),
        (
            spoiled(
                start=lambda self, request: [],
                observe=mutable_state,
                __call__=lambda self, logits, step: logits * (1 + len(step.state)),
            ),
            "older state",
        ),
        (spoiled(name="Bad Name"), "declaration"),
        (spoiled(__doc__=None), "docstring"),
    ],
)  # fmt: skip
def test_the_kit_finds_a_bad_processor(stage, check):
    problems = conformance(stage)
    assert check in {problem.check for problem in problems}
    assert all(str(problem).startswith(problem.check + ": ") for problem in problems)


def test_the_kit_wants_a_neutral_value_that_is_allowed():
    @dataclass(frozen=True)
    class Off(Bad):
        """Do nothing."""

        name = "off"
        share: float = option(0.5, gt=0, neutral=0, help="a share")

    assert {problem.check for problem in conformance(Off())} == {"neutral value"}


def test_the_kit_finds_a_bad_sampler():
    @dataclass(frozen=True)
    class First(Sampler):
        """Take token 0, removed or not."""

        name = "first"

        def __call__(self, logits, step):
            return 0

    assert {problem.check for problem in conformance(First())} == {"support"}


@dataclass(frozen=True)
class Steady(Search):
    """Take the likeliest token, one at a time. Each flag breaks one rule."""

    name = "steady"
    fault: str = option("", help="which rule to break")

    def search(self, session, request, chain):
        logits = session.prefill([request.prompt_ids])
        n_new, reason = 0, request.interrupted()
        if self.fault == "deaf":
            reason = None
        excess = {"long": 1, "endless": 10**9}.get(self.fault, 0)
        while not reason and n_new < request.max_new_tokens + excess:
            logprobs = logits[0].log_softmax(dim=-1)
            token_id = int(logprobs.argmax())
            if token_id in session.eos_ids and self.fault != "eos":
                reason = "eos"
                break
            logprob = 0.0 if self.fault == "logprob" else float(logprobs[token_id])
            yield Draft((Token(token_id, logprob),))
            yield "commit" if self.fault == "event" else Commit((Token(token_id, logprob),))
            n_new += 1
            if self.fault != "deaf":
                reason = request.interrupted()
            logits = session.decode(torch.tensor([token_id]))
            if self.fault == "crash":
                raise RuntimeError("no")
        if self.fault != "unfinished":
            yield Finish("done" if self.fault == "reason" else reason or "length")
        if self.fault == "twice":
            yield Finish("length")


@pytest.mark.parametrize(
    ("fault", "checks"),
    [
        ("deaf", {"stop", "cancel"}),
        ("long", {"max_new_tokens"}),
        ("endless", {"max_new_tokens"}),
        ("eos", {"tokens"}),
        ("logprob", {"logprob"}),
        ("event", {"events"}),
        ("unfinished", {"events"}),
        ("twice", {"events"}),
        ("reason", {"events"}),
        ("crash", {"story"}),
    ],
)
def test_the_kit_finds_a_bad_search(fault, checks):
    found = {problem.check for problem in conformance(Steady(fault), session=EarlyEnd)}
    assert checks <= found


def test_the_kit_passes_a_good_search_that_cannot_overflow():
    """A search may refuse a story at the start, but it must not fail in the middle."""

    @dataclass(frozen=True)
    class Careful(Steady):
        """Refuse a story that does not fit."""

        name = "careful"

        def search(self, session, request, chain):
            if len(request.prompt_ids) + request.max_new_tokens > session.max_seq_len:
                raise UsageError("this search needs the whole story in sight")
            yield from super().search(session, request, chain)

    assert conformance(Careful()) == []
    assert {problem.check for problem in conformance(Steady())} == {"story"}


def test_the_kit_gives_a_search_the_room_it_asks_for():
    @dataclass(frozen=True)
    class Roomy(Steady):
        """Refuse short stories."""

        name = "roomy"
        least: int = option(30, help="what it takes")

        def search(self, session, request, chain):
            if 0 < request.max_new_tokens < self.least:
                raise UsageError("this search needs more tokens")
            fits = len(request.prompt_ids) + request.max_new_tokens <= session.max_seq_len
            if not fits:
                raise UsageError("this search needs the whole story in sight")
            yield from super().search(session, request, chain)

    assert conformance(Roomy()) == []
    assert conformance(Roomy(least=100)) == []
    assert conformance(Roomy(), max_new_tokens=40) == []
    assert {problem.check for problem in conformance(Roomy(), max_new_tokens=20)} == {"story"}


class EarlyEnd(ToySession):
    """Return a session in which EOS is likely, unless a test says otherwise."""

    def __init__(self, **options):
        super().__init__(**{"eos_logit": 7.0, **options})


# The session of the kit keeps the rules it stands for.


def test_toy_session_is_a_function_of_the_last_tokens():
    session, other = ToySession(), ToySession()
    one = session.prefill([[0, 2, 3, 4], [9, 9, 2, 3, 4], [0, 2, 3]])
    assert one[0].equal(one[1])
    assert not one[0].equal(one[2])
    other.prefill([[0, 2]])
    together = other.decode(torch.tensor([[3, 4]]))
    assert together[0, 0].equal(one[2])
    assert together[0, 1].equal(one[0])
    assert other.hidden().shape == (1, 8)
    other.rewind([1])
    with pytest.raises(ValueError, match="no hidden state"):
        other.hidden()
    assert other.decode(torch.tensor([4]))[0].equal(one[0])
    session.reorder(torch.tensor([2, 2]))
    assert session.rows == [[0, 2, 3], [0, 2, 3]]
    assert not session.open("amateur").prefill([[0, 2, 3]])[0].equal(one[2])
    assert session.open().prefill([[0, 2, 3]])[0].equal(one[2])
    assert session.logits_after([0, 2, 3]).equal(one[2])


def test_toy_session_counts_what_it_computes():
    session = ToySession()
    session.prefill([[0, 2, 3]])
    session.prefill([[0, 2, 3, 4], [0, 2, 3], [5]])
    session.decode(torch.tensor([1, 2, 3]))
    assert [tuple(call) for call in session.calls] == [("prefill", 1, 3), ("prefill", 3, 3), ("decode", 3, 3)]


@pytest.mark.parametrize(
    "misuse",
    [
        lambda session: session.prefill([]),
        lambda session: session.prefill([[]]),
        lambda session: session.prefill([[0] * 9]),
        lambda session: session.prefill([[32]]),
        lambda session: session.decode(torch.tensor([0, 0])),
        lambda session: session.decode(torch.zeros((1, 7), dtype=torch.long)),
        lambda session: session.rewind([3]),
        lambda session: session.rewind([-1]),
        lambda session: ToySession(can_rewind=False).rewind([]),
        lambda session: ToySession(can_reorder=False).reorder(torch.tensor([0])),
    ],
)
def test_toy_session_refuses_what_a_real_one_would(misuse):
    session = ToySession(max_seq_len=8)
    session.prefill([[0, 2]])
    with pytest.raises(ValueError):  # noqa: PT011 - one message for each
        misuse(session)


def test_the_example_file_conforms(request):
    (cls,) = load_file(request.config.rootpath / "examples" / "one_file_decoder.py")
    for stage in (cls(), cls(2), cls(100)):
        assert conformance(stage) == []
    logits = torch.tensor([5.0, 1.0, 4.5, 0.9])
    assert kept(cls()(logits, STEP)) == {0, 2}


def test_every_example_parses_and_every_option_has_help():
    registry = discover(user_folder=None)
    for name, cls, _ in registry.classes():
        assert all(o.help for o in options_of(cls)), name
        assert not any(o.required for o in options_of(cls)) or cls.example, name
        if cls.example:
            (stage,) = [s for s in parse_spec(cls.example, registry).stages if isinstance(s, cls)]
            assert stage.name == name
