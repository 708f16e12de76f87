"""Check that every config is valid: the constructor refuses wrong values."""

import pytest
import torch

from tinystory.errors import CheckpointError
from tinystory.model.config import ModelConfig, RopeScaling
from tinystory.model.transformer import Transformer, rope_tables

LLAMA = {"vocab_size": 100, "n_layer": 2, "n_head": 4, "d_model": 32, "max_seq_len": 16, "d_ff": 48}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": 30}, "d_model 30 is not divisible by n_head 4"),
        ({"n_head": 0}, "n_head"),
        ({"vocab_size": 0}, "vocab_size is 0; it must be an integer from 1"),
        ({"vocab_size": -5}, "vocab_size"),
        ({"vocab_size": "100"}, "vocab_size is '100'"),
        ({"n_layer": True}, "n_layer"),
        ({"n_layer": 10**9}, "n_layer"),
        ({"n_kv_head": 3}, "n_head 4 is not a multiple of n_kv_head 3"),
        ({"d_head": 7}, "even head size"),
        ({"norm_eps": 0.0}, "norm_eps"),
        ({"rope_theta": float("nan")}, "rope_theta"),
        ({"d_model": 65_536, "n_head": 512, "d_ff": 1_000_000, "n_layer": 900}, "billion parameters"),
    ],
)
def test_a_wrong_field_is_named_with_its_range(change, message):
    with pytest.raises(CheckpointError, match=message):
        ModelConfig.llama(**LLAMA | change)


def test_gpt2_has_no_grouped_heads():
    with pytest.raises(CheckpointError, match="grouped"):
        ModelConfig("gpt2", 100, 2, 4, 2, 32, 8, 64, 16)
    with pytest.raises(CheckpointError, match="not divisible"):
        ModelConfig.gpt2(100, 2, 3, 32, 16)
    with pytest.raises(CheckpointError, match="family"):
        ModelConfig("rwkv", 100, 2, 4, 4, 32, 8, 64, 16)


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig.llama(**LLAMA),
        ModelConfig.llama(**LLAMA, n_kv_head=2, tied_head=False, attention_bias=True, ff_bias=True),
        ModelConfig.llama(**LLAMA, d_head=16, attention_out_bias=True),
        ModelConfig.gpt2(100, 2, 4, 32, 16),
        ModelConfig.gpt2(100, 2, 4, 32, 16, d_ff=40, tied_head=False),
    ],
)
def test_the_parameter_count_is_the_models(config):
    assert config.n_parameters == sum(p.numel() for p in Transformer(config).parameters())


def test_the_student_projects_model_has_86_million_parameters():
    config = ModelConfig.gpt2(50257, 2, 12, 768, 1024, d_ff=1024, tied_head=False)
    assert round(config.n_parameters / 1e6, 1) == 85.9


def test_positions_that_are_scaled_linearly_turn_slower():
    plain = ModelConfig.llama(**LLAMA)
    scaled = ModelConfig.llama(**LLAMA, rope_scaling=RopeScaling("linear", 4.0))
    for ours, theirs in zip(
        rope_tables(scaled, torch.tensor([8]), torch.float64),
        rope_tables(plain, torch.tensor([2]), torch.float64),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_fresh_weights_are_the_seeds_and_every_block_begins_as_the_identity():
    def logits(seed):
        model = Transformer(ModelConfig.llama(**LLAMA))
        model.init_weights(seed)
        assert not model.blocks[0].attn.o.weight.any()
        return model(torch.tensor([[1, 2, 3]]))

    assert logits(1).equal(logits(1))
    assert not logits(1).equal(logits(2))
    gpt2 = Transformer(ModelConfig.gpt2(100, 2, 4, 32, 16))
    gpt2.init_weights(0)
    assert 0.007 < gpt2.blocks[0].ff.down.weight.std() < 0.013
    assert not gpt2.blocks[0].attn.q.bias.any()
