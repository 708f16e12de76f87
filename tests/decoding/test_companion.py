"""A second model beside the one that writes: guidance and expert-amateur equal full passes and transformers."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from logits_cases import enough_examples, many_logits

from tinystory.decoding import Commit, Decoder, Finish, Request, Step, latest_half
from tinystory.decoding.companion import Companion
from tinystory.decoding.loop import run
from tinystory.decoding.plugins import discover
from tinystory.decoding.spec import format_spec, parse_spec
from tinystory.errors import CheckpointError, UsageError
from tinystory.model.config import ModelConfig
from tinystory.model.transformer import Transformer
from tinystory.session.hf_session import HFSession
from tinystory.session.loading import load
from tinystory.session.native import NativeSession
from tinystory.testing import ToySession, ToyVocabulary, conformance
from tinystory.writing.generate import StoryRequest, Trimmed, write
from tinystory_decoders.expert_amateur import ExpertAmateur
from tinystory_decoders.greedy import Greedy
from tinystory_decoders.guidance import Guidance
from tinystory_decoders.sample import Sample
from tinystory_decoders.top_k import TopK

V, LIMIT = 61, 24


def random_model(seed):
    torch.manual_seed(seed)
    model = Transformer(ModelConfig.llama(V, 2, 2, 16, LIMIT, 32)).to(torch.float64)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


EXPERT, AMATEUR = random_model(1), random_model(2)


class Numbers(ToyVocabulary):
    """A vocabulary whose texts are lists of token ids."""

    def encode(self, text, *, bos=True):
        return [0] * bos + [int(word) for word in text.split()]


def full(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids]))[0, -1].float().log_softmax(dim=-1)


def request_at(ids, n_prompt, model=EXPERT, **others):
    session = NativeSession(model, 0, frozenset({1}), lambda name: NativeSession(AMATEUR, 0, frozenset({1})))
    return Request(tuple(ids[:n_prompt]), 99, 1, vocabulary=Numbers(V), opener=session.open, **others)


def along(stage, ids, n_prompt, **others):
    """Return the logits that a stage gives at each token after the prompt."""
    request = request_at(ids, n_prompt, **others)
    state = stage.start(request)
    for end in range(n_prompt, len(ids)):
        logits = full(EXPERT, ids[:end]) if end <= LIMIT else torch.zeros(V)
        yield end, logits, stage(logits, Step(request, ids[:end], frozenset({1}), state))
        state = stage.observe(state, ids[end], logits)


IDS = [0, *torch.randint(2, V, (20,), generator=torch.Generator().manual_seed(0)).tolist()]


@pytest.mark.parametrize(("text", "negative"), [("", [0]), ("7 8 9", [0, 7, 8, 9])])
def test_guidance_is_that_of_full_forwards(text, negative):
    for end, logits, guided in along(Guidance(1.5, text), IDS, 4):
        aside = full(EXPERT, [*negative, *IDS[4:end]])
        torch.testing.assert_close(guided, aside + 1.5 * (logits - aside), atol=1e-5, rtol=1e-5)


def test_expert_amateur_is_that_of_full_forwards():
    n_removed = 0
    for end, logits, contrasted in along(ExpertAmateur("other", 0.1, 0.5), IDS, 4):
        probs = logits.double().softmax(dim=-1)
        kept = probs >= 0.1 * probs.max()
        n_removed += int((~kept).sum())
        wanted = (1.5 * logits - 0.5 * full(AMATEUR, IDS[:end])).masked_fill(~kept, -math.inf)
        torch.testing.assert_close(contrasted, wanted, atol=1e-5, rtol=1e-5)
    assert n_removed > 20


class Given(ToySession):
    """A model that gives the same logits for every context."""

    def __init__(self, logits):
        super().__init__(vocab_size=len(logits))
        self.logits = logits

    def prefill(self, prompts):
        return self.logits[None]


@pytest.mark.parity
@given(many_logits, st.integers(0, 10**6), st.floats(1, 10, exclude_min=True))
@enough_examples
def test_guidance_parity_on_random_logits(logits, seed, scale):
    """Ties and removed tokens are included. Log-probabilities below the floor are not, because no story has them."""
    from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor

    logits = logits.clamp(-40, 40).masked_fill(logits == -math.inf, -math.inf)
    unguided = torch.randn(len(logits), generator=torch.Generator().manual_seed(seed)).mul(2).round()
    theirs = UnbatchedClassifierFreeGuidanceLogitsProcessor(scale, None)
    theirs.get_unconditional_logits = lambda input_ids: unguided[None, None]
    request = Request((0,), 9, 1, opener=lambda model: Given(unguided))
    stage = Guidance(scale)
    guided = stage(logits, Step(request, [0], frozenset(), stage.start(request)))
    torch.testing.assert_close(guided, theirs(torch.tensor([[0]]), logits[None])[0], atol=1e-4, rtol=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("negative", [None, [7, 8, 9]])
def test_guidance_parity(negative):
    """Compare a whole story. Without a negative prompt, transformers begins with the prompt's last token."""
    import transformers
    from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor

    torch.manual_seed(4)
    config = transformers.GPT2Config(vocab_size=V, n_positions=32, n_embd=16, n_layer=2, n_head=2)
    model = transformers.GPT2LMHeadModel(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    unconditional = None if negative is None else torch.tensor([negative])
    theirs = UnbatchedClassifierFreeGuidanceLogitsProcessor(2.5, model, unconditional)
    session = HFSession(model)  # it names no BOS, so ours begins like theirs
    no_bos = Numbers(V)
    no_bos.encode = lambda text, bos=True: [int(word) for word in text.split()]
    request = Request(tuple(IDS[:4]), 99, 1, vocabulary=no_bos, opener=session.open)
    stage = Guidance(2.5, " ".join(map(str, negative or [])))
    state = stage.start(request)
    for end in range(4, 16):
        with torch.no_grad():
            logits = model(torch.tensor([IDS[:end]])).logits[0, -1]
            wanted = theirs(torch.tensor([IDS[:end]]), logits[None])[0]
        guided = stage(logits, Step(request, IDS[:end], frozenset(), state))
        torch.testing.assert_close(guided, wanted, atol=1e-4, rtol=1e-4)


@given(st.lists(st.lists(st.integers(2, V - 1), min_size=1, max_size=30), min_size=1, max_size=6), st.data())
@settings(deadline=None, max_examples=20)
def test_a_companion_is_a_function_of_the_ids(rows, data):
    """The result does not depend on earlier calls: other stories, shorter ones, or ones longer than the context."""
    companion = Companion(request_at([0], 1))
    for row in rows:
        for end in data.draw(st.lists(st.integers(1, len(row)), min_size=1, max_size=4)):
            ids = row[:end] if end <= LIMIT else latest_half(row[:end], LIMIT)
            torch.testing.assert_close(
                companion.logits(row[:end]).log_softmax(-1), full(EXPERT, list(ids)), atol=1e-5, rtol=1e-5
            )


@pytest.mark.parametrize("can_rewind", [True, False])
def test_a_companion_computes_only_what_is_new(can_rewind):
    twins = []

    def opener(model):
        twins.append(ToySession(can_rewind=can_rewind))
        return twins[-1]

    companion = Companion(Request((0,), 9, 1, opener=opener))
    for ids in ([0, 5], [0, 5, 6], [0, 5, 6, 7], [0, 5, 9], [0, 5, 9]):
        assert companion.logits(ids).equal(twins[0].logits_after(ids))
    assert sum(call.tokens for call in twins[0].calls if call.verb != "rewind") == 6
    assert companion.statistics("x")["x_calls"] == companion.calls == 5
    assert companion.statistics("x")["x_seconds"] > 0


def test_a_story_out_of_sight_goes_on():
    ids = IDS * 2
    for stage in (Guidance(1.5, "7 8"), ExpertAmateur("other")):
        assert all(out.shape == (V,) and out.max() > -math.inf for _, _, out in along(stage, ids, 4))


@pytest.mark.parametrize(
    "stage",
    [Guidance(1.5, "a b"), Guidance(100.0), ExpertAmateur(), ExpertAmateur("x", 1.0, 2.0),
     ExpertAmateur("x", 0.0, 100.0), ExpertAmateur("x", 0.3, 0.0)],
)  # fmt: skip
def test_conformance(stage):
    assert conformance(stage) == []


def test_options():
    assert ExpertAmateur("x").models() == ("x",)
    assert Guidance(1.5).models() == ()
    assert not Decoder((Guidance(1.0, "x"), ExpertAmateur("x", 0.0, 0.0)), Greedy()).chain.processors
    registry = discover(user_folder=None)
    for text in ('guidance 1.5 negative="A sad story." | sample', "expert-amateur | greedy"):
        assert format_spec(parse_spec(text, registry)) == text


def test_models_that_share_no_tokens_are_refused():
    request = Request((0,), 9, 1, opener=lambda name: ToySession(vocab_size=7))
    stage = ExpertAmateur("small")
    with pytest.raises(UsageError, match="small has 7 tokens, but the model that writes has 32"):
        stage(torch.zeros(32), Step(request, [0], frozenset(), stage.start(request)))
    with pytest.raises(UsageError, match="no model can be opened here"):
        Guidance(1.5).start(Request((0,), 9, 1))


def test_statistics_say_what_it_took():
    decoder = Decoder((Guidance(1.5), ExpertAmateur("x")), Greedy())
    session = ToySession(eos_logit=-math.inf)
    (finish,) = [e for _, e in run(session, [(decoder, Request((0, 5), 7, 1))]) if isinstance(e, Finish)]
    assert finish.statistics["guidance_calls"] == finish.statistics["amateur_calls"] == 7
    assert finish.statistics["guidance_seconds"] > 0
    assert finish.statistics["amateur_seconds"] > 0


def test_beside_the_shipped_model():
    """Another checkpoint opens by its name, and a notice comes only when the context of the writing model is full."""
    model = load("mini")
    decoder = Decoder((Guidance(2.0, "A sad story."), ExpertAmateur("mini")), Greedy())
    request = StoryRequest("Tim had a red ball.", decoder, seed=1, max_new_tokens=12)
    events = list(write(model.session, model.tokenizer, [request]))
    assert not any(isinstance(event, Trimmed) for event in events)
    assert len(events[-1].result.tokens) == 12
    with pytest.raises(CheckpointError, match="nowhere"):
        list(write(model.session, model.tokenizer, [replace(request, decoder=Decoder((ExpertAmateur("./nowhere"),)))]))


def test_the_context_of_the_second_model_is_not_announced(checkpoint):
    """A long negative prompt fills the context before the story does."""
    model = load(str(checkpoint))
    decoder = Decoder((Guidance(2.0, "Once upon a time. " * 30), TopK(20)), Sample())
    request = StoryRequest("Tim", decoder, seed=3, max_new_tokens=12)
    assert not any(isinstance(event, Trimmed) for event in write(model.session, model.tokenizer, [request]))
    longer = replace(request, max_new_tokens=80)
    events = list(write(model.session, model.tokenizer, [longer]))
    assert any(isinstance(event, Trimmed) for event in events) == (len(events[-1].result.tokens) > 70)


def test_stories_go_on_alike_after_a_pause():
    """n_prompt says which part was generated, and not the place where a turn began."""
    decoder = Decoder((Guidance(2.0),), Sample())
    session = ToySession(eos_logit=-math.inf)

    def ids(request):
        return [t.id for _, e in run(session, [(decoder, request)]) if isinstance(e, Commit) for t in e.tokens]

    whole = ids(Request((0, 5), 8, 1))
    assert ids(Request((0, 5, *whole[:3]), 5, 1, n_prompt=2)) == whole[3:]
