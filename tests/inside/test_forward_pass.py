"""A look inside equals the model itself and transformers, and leaving out a part changes what it should."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinystory.errors import UsageError
from tinystory.inside.forward_pass import Part, forward_pass, parts_of
from tinystory.inside.heads import gaze
from tinystory.inside.layers import decided_at, guesses
from tinystory.inside.removal import effects
from tinystory.model.config import ModelConfig
from tinystory.model.transformer import Transformer


def random_model(config, seed=0):
    torch.manual_seed(seed)
    model = Transformer(config).requires_grad_(False).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@st.composite
def models_and_stories(draw):
    n_kv_head, group, n_layer = (draw(st.integers(1, 3)) for _ in range(3))
    d_head, vocab_size = draw(st.sampled_from([2, 4, 8])), draw(st.integers(2, 40))
    n_head = n_kv_head * group
    if draw(st.booleans()):
        config = ModelConfig.llama(
            vocab_size, n_layer, n_head, n_head * d_head, 24, 2 * d_head, n_kv_head=n_kv_head, d_head=d_head
        )
    else:
        config = ModelConfig.gpt2(vocab_size, n_layer, n_head, n_head * d_head, 24, 2 * d_head)
    return random_model(config, draw(st.integers(0, 99))), draw(
        st.lists(st.integers(0, vocab_size - 1), min_size=1, max_size=24)
    )


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request):
    if request.param == "llama":
        return random_model(ModelConfig.llama(50, 3, 4, 32, 64, 48, n_kv_head=2))
    return random_model(ModelConfig.gpt2(50, 3, 4, 32, 64, 48))


TOKENIZER = json.dumps({"model": {"type": "WordLevel", "vocab": {f"w{i}": i for i in range(50)}, "unk_token": "w0"}})
STORY = [0, 7, 3, 7, 21, 49, 3, 11]


@settings(deadline=None, max_examples=30)
@given(models_and_stories())
def test_the_pass_is_the_models_own(case):
    model, story = case
    run = forward_pass(model, story)
    own = model(torch.tensor([story]))[0]
    assert torch.allclose(run.logits, own, atol=1e-4)
    assert torch.allclose(run.attention.sum(-1), torch.ones(run.attention.shape[:-1]), atol=1e-4)
    assert not run.attention.triu(1).any()
    assert run.stream.shape == (model.config.n_layer + 1, len(story), model.config.d_model)
    last = guesses(run, len(story))[-1]
    probabilities = own[-1].softmax(-1)
    assert last.likeliest[0][1] == pytest.approx(float(probabilities.max()), abs=1e-4)
    assert last.entropy == pytest.approx(float(torch.special.entr(probabilities).sum()) / math.log(2), abs=1e-3)


@pytest.mark.parity
def test_layers_and_attention_are_those_of_transformers(model, tmp_path):
    transformers = pytest.importorskip("transformers")
    from tinystory.checkpoint.save import save_checkpoint

    save_checkpoint(tmp_path / "m", model, TOKENIZER, bos_id=0, eos_ids={0}, provenance={})
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", attn_implementation="eager")
    output = other(torch.tensor([STORY]), output_hidden_states=True, output_attentions=True)
    run = forward_pass(model, STORY)
    assert torch.allclose(run.stream[:-1], torch.cat(output.hidden_states[:-1]), atol=1e-4)
    assert torch.allclose(model.norm(run.stream[-1]), output.hidden_states[-1][0], atol=1e-4)
    assert torch.allclose(run.attention, torch.cat(output.attentions), atol=1e-4)


def test_each_layers_guess_is_the_head_on_the_stream(model):
    run = forward_pass(model, STORY)
    layers = guesses(run, 4, n_likeliest=3)
    assert [guess.layer for guess in layers] == [0, 1, 2, 3]
    for guess, stream in zip(layers, run.stream, strict=True):
        shares = model.head(model.norm(stream[3])).softmax(-1)
        assert guess.likeliest[0][0] == int(shares.argmax())
        assert guess.taken == pytest.approx(float(shares[STORY[4]]), abs=1e-6)
        assert guess.taken_rank == int((shares > shares[STORY[4]]).sum()) + 1
        assert len(guess.likeliest) == 3
    at_the_end = guesses(run, len(STORY))
    assert at_the_end[-1].taken is None
    assert at_the_end[-1].taken_rank is None
    for index in (0, len(STORY) + 1, -1):
        with pytest.raises(IndexError):
            guesses(run, index)


def test_a_mind_is_made_up_where_the_likeliest_token_stays():
    from tinystory.inside.layers import LayerGuess

    def layers(*likeliest):
        return [LayerGuess(n, ((token, 0.5),), None, None, 1.0) for n, token in enumerate(likeliest)]

    assert decided_at(layers(4, 9, 4, 4)) == 2
    assert decided_at(layers(4, 4, 4)) == 0
    assert decided_at(layers(4, 5)) == 1


def test_leaving_out_a_part_leaves_out_just_that(model):
    whole = forward_pass(model, STORY)
    assert len(parts_of(model)) == 3 * (4 + 2)
    for part in parts_of(model):
        for replacement in ("zero", "mean"):
            run = forward_pass(model, STORY, part, replacement)
            assert torch.equal(run.stream[: part.layer + 1], whole.stream[: part.layer + 1])
            assert not torch.allclose(run.stream[part.layer + 1], whole.stream[part.layer + 1], atol=1e-4)
    silent = forward_pass(model, STORY, Part(1, "attention"))
    block = model.blocks[1]
    assert torch.allclose(silent.stream[2], silent.stream[1] + block.ff(block.ff_norm(silent.stream[1])), atol=1e-4)


def test_a_head_left_out_is_a_column_of_the_output_matrix_left_out(model):
    """The output of an attention is the sum of its heads, so without a head its columns count nothing."""
    columns = slice(2 * model.blocks[1].attn.d_head, 3 * model.blocks[1].attn.d_head)
    weight = model.blocks[1].attn.o.weight
    kept = weight.clone()
    run = forward_pass(model, STORY, Part(1, "head", 2))
    weight[:, columns] = 0
    expected = model(torch.tensor([STORY]))[0]
    weight.copy_(kept)
    assert torch.allclose(run.logits, expected, atol=1e-4)


def test_the_mean_of_a_constant_is_no_change(model):
    """A part whose output is the same for every token is not missed if its mean stands in."""
    story = [5]
    whole = forward_pass(model, story)
    for part in parts_of(model):
        assert torch.allclose(forward_pass(model, story, part, "mean").logits, whole.logits, atol=1e-4)


def test_the_effect_of_a_part_is_the_difference_in_bits(model):
    found = list(effects(model, STORY[:5], STORY[5]))
    assert [effect.part for effect in found] == list(parts_of(model))

    def bits(part=None):
        return float(forward_pass(model, STORY[:5], part).logits[-1].log_softmax(-1)[STORY[5]]) / math.log(2)

    for effect in found:
        assert effect.bits == pytest.approx(bits() - bits(effect.part), abs=1e-4)
        assert effect.likeliest == int(forward_pass(model, STORY[:5], effect.part).logits[-1].argmax())
    assert len({round(effect.bits, 6) for effect in found}) > 10


def test_effects_can_be_stopped(model):
    asked = iter([False, False, True])
    assert len(list(effects(model, STORY, 1, cancel=lambda: next(asked)))) == 2
    for token_id in (-1, 50):
        with pytest.raises(UsageError, match="0 to 49"):
            effects(model, STORY, token_id)


def test_bos_is_told_apart_from_the_words(model):
    run = forward_pass(model, STORY)
    seen = gaze(run, 5, bos_id=0)
    assert seen.weights.shape == (3, 4, 5)
    assert torch.equal(seen.weights, run.attention[:, :, 4, :5])
    assert torch.equal(seen.bos_share, run.attention[:, :, 4, 0])
    for layer, head in ((None, None), (1, None), (2, 3), (None, 0)):
        words = seen.words(layer, head)
        assert words[0] == 0
        assert float(words.sum()) == pytest.approx(1, abs=1e-5)
    shares = run.attention[2, 3, 4, 1:5]
    assert torch.allclose(seen.words(2, 3)[1:], shares / shares.sum(), atol=1e-5)
    without = gaze(run, 5, bos_id=None)
    assert not without.bos_share.any()
    assert torch.allclose(without.words(2, 3), run.attention[2, 3, 4, :5], atol=1e-5)
    assert gaze(run, 1, bos_id=0).words().tolist() == [0.0]  # nothing but BOS was there
    with pytest.raises(UsageError, match="no layer 4; the model has 3"):
        seen.words(3)
    with pytest.raises(UsageError, match="no head 5; the model has 4"):
        seen.words(0, 4)


def test_what_does_not_exist_is_refused(model):
    for story in ([], [1] * 65):
        with pytest.raises(UsageError, match="1 to 64"):
            forward_pass(model, story)
    for part in (Part(3, "attention"), Part(0, "head", 4), Part(0, "head")):
        with pytest.raises(UsageError, match="3 layers of 4 heads"):
            forward_pass(model, STORY, part)
    assert str(Part(1, "head", 2)) == "layer 2, head 3"
    assert str(Part(0, "feed-forward")) == "layer 1, feed-forward"
