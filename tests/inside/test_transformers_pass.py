"""Architectures that only transformers runs: their layers and attention, or one line that says why not."""

import pytest
import torch

from tinystory.errors import UsageError
from tinystory.inside.layers import guesses
from tinystory.inside.transformers_pass import transformers_pass

pytestmark = pytest.mark.parity

SIZES = {
    "vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40,
    "max_position_embeddings": 64,
}  # fmt: skip
STORY = [1, 5, 9, 33, 2, 60]


def random_model(family, **more):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SIZES | more)
    return getattr(transformers, f"{family}ForCausalLM")(config).eval()


@pytest.mark.parametrize(
    ("family", "more"),
    [("Mistral", {"num_key_value_heads": 2}), ("Qwen2", {"num_key_value_heads": 2}), ("GPTNeoX", {})],
)
def test_layers_and_attention(family, more):
    model = random_model(family, **more)
    own = model(torch.tensor([STORY])).logits[0].detach()
    kernel = model.config._attn_implementation
    run = transformers_pass(model, STORY)
    assert torch.allclose(run.logits, own, atol=1e-4)
    assert run.stream.shape == (3, len(STORY), 32)
    assert run.attention.shape == (2, 4, len(STORY), len(STORY))
    assert not run.attention.triu(1).any()
    last = guesses(run, len(STORY))[-1].likeliest[0]
    assert last[0] == int(own[-1].argmax())
    assert last[1] == pytest.approx(float(own[-1].softmax(-1).max()), abs=1e-4)
    assert model.config._attn_implementation == kernel
    n_hooks = sum(len(module._forward_hooks) for module in model.modules())
    again = transformers_pass(model, STORY)
    assert torch.equal(again.stream, run.stream)
    assert sum(len(module._forward_hooks) for module in model.modules()) == n_hooks  # none of ours stays behind


def test_logits_that_are_more_than_norm_and_head_are_refused():
    model = random_model("Cohere", num_key_value_heads=2, logit_scale=0.0625)
    with pytest.raises(UsageError, match="more than norm and head"):
        transformers_pass(model, STORY)


def test_layers_without_attention():
    model = random_model("Mamba", state_size=4, conv_kernel=2)
    run = transformers_pass(model, STORY)
    assert run.attention is None
    assert len(guesses(run, 3)) == 3
