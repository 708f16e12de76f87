"""Processors of transformers as our stages, and our processors inside `generate` of transformers."""

import math
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinystory.decoding import Commit, Decoder, LogitsProcessor, Request, Step, option
from tinystory.decoding.hf_processor import as_logits_processor
from tinystory.decoding.loop import run
from tinystory.decoding.plugins import discover
from tinystory.decoding.spec import format_spec, parse_spec
from tinystory.errors import TinystoryError, UsageError
from tinystory.session.hf_session import HFSession
from tinystory.testing import ToyVocabulary, conformance
from tinystory_decoders.greedy import Greedy
from tinystory_decoders.hf import HF
from tinystory_decoders.top_k import TopK

INF = math.inf
REQUEST = Request((0,), max_new_tokens=1, seed=3)
EOS = 1

ids_lists = st.lists(st.integers(0, 11), min_size=1, max_size=20)
logits_of_12 = (
    st.lists(st.floats(-30, 30, width=32) | st.integers(-3, 3).map(float) | st.just(-INF), min_size=12, max_size=12)
    .filter(lambda values: max(values) > -INF)
    .map(lambda values: torch.tensor(values))
)
many_examples = settings(deadline=None, max_examples=200)


def assert_same_as_the_class(call, arguments, token_ids, logits):
    from transformers.generation import logits_process

    name = call.partition("(")[0]
    ours = HF(call)
    found = ours(logits, Step(REQUEST, token_ids, frozenset({EOS}), ours.start(REQUEST)))
    instance = getattr(logits_process, name)(**arguments)
    theirs = instance(torch.tensor([token_ids]), logits[None].clone())[0]
    torch.testing.assert_close(found, theirs, rtol=0, atol=0)


# Processors of transformers as our stages.


@pytest.mark.parity
@given(ids_lists, logits_of_12, st.floats(0.1, 5))
@many_examples
def test_their_repetition_penalty(token_ids, logits, penalty):
    call = f"RepetitionPenaltyLogitsProcessor({penalty!r})"
    assert_same_as_the_class(call, {"penalty": penalty}, token_ids, logits)


@pytest.mark.parity
@given(ids_lists, logits_of_12, st.floats(0.05, 0.99), st.integers(1, 4))
@many_examples
def test_their_typical_decoding(token_ids, logits, mass, least):
    call = f"TypicalLogitsWarper(mass={mass!r}, min_tokens_to_keep={least})"
    assert_same_as_the_class(call, {"mass": mass, "min_tokens_to_keep": least}, token_ids, logits)


@pytest.mark.parity
@given(ids_lists, logits_of_12, st.lists(st.lists(st.integers(0, 8), min_size=1, max_size=3), min_size=1, max_size=3))
@many_examples
def test_their_banned_sequences(token_ids, logits, words):
    words = [word for word in words if word != [EOS]] or [[2]]
    arguments = {"bad_words_ids": words, "eos_token_id": EOS}
    call = f"NoBadWordsLogitsProcessor(bad_words_ids={words}, eos_token_id={EOS})"
    assert_same_as_the_class(call, arguments, token_ids, logits)


def test_the_stage_conforms():
    for call in ("TopKLogitsWarper(3)", "TopPLogitsWarper(top_p=0.9)", "RepetitionPenaltyLogitsProcessor(1.3)"):
        assert conformance(HF(call)) == [], call


def test_a_removed_token_does_not_come_back():
    logits = torch.tensor([0.0, -INF, 2.0])
    stage = HF("TopKLogitsWarper(1, filter_value=-7.0)")
    assert stage(logits, Step(REQUEST, [0], frozenset(), stage.start(REQUEST))).tolist() == [-7, -INF, 2]


def test_a_spec_with_a_call_reads_back():
    registry = discover(user_folder=None)
    spec = 'hf "NoBadWordsLogitsProcessor([[5, 6], [7]], eos_token_id=None)" | hf LogitNormalization | greedy'
    decoder = parse_spec(spec, registry)
    assert format_spec(decoder) == spec
    assert parse_spec("hf TopKLogitsWarper(40)", registry).processors == (HF("TopKLogitsWarper(40)"),)


@pytest.mark.parametrize(
    "call",
    [
        "", "3", "os.system('true')", "Top(k", "Top(k=open('x'))", "Top({1})", "Top(b'x')", "Top(...)", "Top(1+2j)",
        "Top(*[1])", "Top(k=1)(2)", "lambda: 0", "Top(" + "[" * 5000, "[" * 900 + "]" * 900, "Top(x" * 3000, "T(\0)",
    ],
)  # fmt: skip
def test_what_is_no_call_with_plain_data_is_refused_before_the_story(call):
    with pytest.raises(UsageError, match="is not a class with plain arguments") as caught:
        HF(call)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ("TopKLogitWarper(40)", "did you mean `TopKLogitsWarper`?"),
        ("LogitsProcessor", "no logits processor"),
        ("LogitsProcessorList", "no logits processor"),
        ("math", "no logits processor"),
        ("add_start_docstrings", "no logits processor"),
        ("TopKLogitsWarper(0)", "strictly positive integer"),
        ("TopKLogitsWarper(k=4)", "it has top_k"),
        ("TopKLogitsWarper", "missing a required argument: 'top_k'"),
        ("UnbatchedClassifierFreeGuidanceLogitsProcessor(2.0)", "needs model"),
        ("PrefixConstrainedLogitsProcessor(num_beams=2)", "needs prefix_allowed_tokens_fn"),
        ("EncoderNoRepeatNGramLogitsProcessor(2, [1])", "needs encoder_input_ids"),
        ("WatermarkLogitsProcessor(10000000000000, 'cpu')", "a size must be"),
        ("WatermarkLogitsProcessor('x', 'cpu')", "does not take these arguments"),
    ],
)
def test_what_no_class_takes_is_one_line_at_the_start(call, told):
    with pytest.raises(UsageError) as caught:
        HF(call).start(REQUEST)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_each_story_has_an_instance_of_its_own():
    stage = HF("SynthIDTextWatermarkLogitsProcessor(2, [5, 6], 64, 0, 16, 'cpu')")
    assert stage.start(REQUEST) is not stage.start(REQUEST)


def test_a_spec_is_read_without_torch():
    code = (
        "import sys; from tinystory.decoding.plugins import discover; from tinystory.decoding.spec import parse_spec\n"
        "parse_spec('hf TopKLogitsWarper(3)', discover())\n"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Our processors inside `generate`.


@dataclass(frozen=True)
class Tired(LogitsProcessor):
    """Lower each token by its cost so far. The ids alone do not give this state."""

    name = "tired"
    rate: float = option(0.7, ge=0, help="how fast")

    def start(self, request):
        return (0.0,) * 32

    def __call__(self, logits, step):
        return logits - torch.tensor(step.state)

    def observe(self, state, token_id, logits):
        cost = self.rate * (1 + float(logits.softmax(dim=-1)[token_id]))
        return (*state[:token_id], state[token_id] + cost, *state[token_id + 1 :])


@dataclass(frozen=True)
class Noisy(LogitsProcessor):
    """Add noise from a stream of its own."""

    name = "noisy"

    def __call__(self, logits, step):
        noise = step.noise("noisy").gumbel(torch.arange(len(logits)).numpy())
        return logits + torch.from_numpy(noise).to(logits)


@dataclass(frozen=True)
class NotYet(LogitsProcessor):
    """Remove the end of the story before the ninth new token."""

    name = "not-yet"

    def __call__(self, logits, step):
        early = len(step.token_ids) - step.n_prompt < 9
        return logits.index_fill(0, torch.tensor(sorted(step.eos_ids)), -INF) if early else logits


@pytest.fixture(scope="module")
def hf_model():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, bos_token_id=0, eos_token_id=EOS, pad_token_id=2, initializer_range=0.4,
    )  # fmt: skip
    return LlamaForCausalLM(config).double().eval()


def generated(model, prompts, processor, **options):
    """Return the new ids of each row up to its EOS, for prompts that are padded to one length."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[2] * (longest - len(prompt)) + prompt for prompt in prompts])
    found = model.generate(
        ids,
        attention_mask=(ids != 2).long(),
        max_new_tokens=16,
        do_sample=False,
        logits_processor=[processor],
        **options,
    )
    rows = [row[longest:] for row in found.tolist()]
    return [row[: row.index(EOS)] if EOS in row else row for row in rows]


def written(model, prompts, processors, seed=5):
    """Return the new ids of the same stories from our own loop, each story alone."""
    session = HFSession(model, 0, frozenset({EOS}))
    stories = []
    for number, prompt in enumerate(prompts):
        request = Request(tuple(prompt), 16, seed, story=number, vocabulary=ToyVocabulary())
        events = run(session, [(Decoder(processors, Greedy()), request)])
        stories.append([token.id for _, event in events if isinstance(event, Commit) for token in event.tokens])
    return stories


PROMPTS = [[0, 5, 3], [0, 7, 4, 9, 11], [0]]


@pytest.mark.parity
@pytest.mark.parametrize(
    "processors",
    [(TopK(3),), (Tired(),), (TopK(4), Tired(2.0)), (Noisy(),), (NotYet(), Noisy()),
     (HF("TopKLogitsWarper(2)"), Tired())],
    ids=repr,
)  # fmt: skip
def test_ours_inside_generate_is_ours_alone(hf_model, processors):
    processor = as_logits_processor(Decoder(processors), seed=5, eos_ids=frozenset({EOS}), pad_id=2)
    alone = written(hf_model, PROMPTS, processors)
    assert generated(hf_model, PROMPTS, processor) == alone
    assert generated(hf_model, PROMPTS, processor) == alone  # another story with the same processor
    assert len({tuple(story) for story in alone}) > 1


@pytest.mark.parity
def test_beams_that_change_places_keep_their_states(hf_model):
    """The state of a row equals the state that a replay of its ids from the prompt gives."""
    stage, seen, moves = Tired(1.5), [], []
    bridge = as_logits_processor(stage, pad_id=2)

    def watch(input_ids, scores):
        before = [story.token_ids for story in bridge._stories]
        processed = bridge(input_ids, scores)
        seen.extend((story.token_ids, story.state[0]) for story in bridge._stories)
        moves.extend(old != story.token_ids[:-1] for old, story in zip(before, bridge._stories, strict=False))
        return processed

    generated(hf_model, [[0, 5, 3]], watch, num_beams=4)
    assert sum(moves) > 10
    for ids, state in seen:
        expected = stage.start(REQUEST)
        for length in range(3, len(ids)):
            with torch.no_grad():
                logits = hf_model(torch.tensor([ids[:length]])).logits[0, -1].log_softmax(-1).float()
            expected = stage.observe(expected, ids[length], logits)
        assert state == pytest.approx(expected, abs=1e-4)


def test_a_row_that_goes_on_from_nowhere_starts_anew_with_its_prompt_in_mind():
    bridge = as_logits_processor(Tired())
    bridge(torch.tensor([[0, 5, 3]]), torch.zeros(1, 32))
    bridge(torch.tensor([[0, 5, 3, 8, 9]]), torch.zeros(1, 32))
    [story] = bridge._stories
    assert story.n_prompt == 3
    assert story.state[0] == (0.0,) * 32
    bridge(torch.tensor([[0, 6]]), torch.zeros(1, 32))
    assert bridge._stories[0].n_prompt == 2


def test_neutral_stages_and_plain_specs():
    bridge = as_logits_processor("min-p 0 | temperature 2")
    assert bridge(torch.tensor([[0]]), torch.tensor([[4.0, 2.0]])).tolist() == [[2, 1]]
    scores = torch.tensor([[4.0, 2.0]], dtype=torch.float64)
    assert as_logits_processor("min-p 0")(torch.tensor([[0]]), scores).equal(scores)


@pytest.mark.parametrize("spec", ["greedy", "top-k 4 | sample 0.7", "top-k 4 | greedy"])
def test_what_picks_tokens_is_refused(spec):
    with pytest.raises(UsageError, match="inside `generate` transformers does"):
        as_logits_processor(spec)


def test_a_stage_that_removes_all_is_named():
    @dataclass(frozen=True)
    class Empty(LogitsProcessor):
        """Remove everything."""

        name = "empty"

        def __call__(self, logits, step):
            return logits - INF

    with pytest.raises(TinystoryError, match="no token is left: empty"):
        as_logits_processor(Empty())(torch.tensor([[0]]), torch.zeros(1, 4))
