"""Compare with transformers: one checkpoint gives the same logits, read or written by us; SDPA equals the formula."""

import json

import pytest
import torch

from tinystory.checkpoint import load_model, read_header, save_checkpoint
from tinystory.model.config import ModelConfig, RopeScaling
from tinystory.model.transformer import Transformer, attend, attend_explicitly

VOCAB_SIZE = 61
SMALL_GPT2 = {"vocab_size": VOCAB_SIZE, "n_positions": 48, "n_embd": 24, "n_layer": 2, "n_head": 3}
SMALL_LLAMA = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": 48,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
HF_CASES = {
    "gpt2, tied": ("gpt2", {}),
    "gpt2, untied, own width": ("gpt2", {"tie_word_embeddings": False, "n_inner": 40}),
    "gpt2, exact gelu": ("gpt2", {"activation_function": "gelu", "layer_norm_epsilon": 1e-3}),
    "llama, untied": ("llama", {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True, "rms_norm_eps": 1e-3}),
    "llama, grouped heads": ("llama", {"num_key_value_heads": 2, "rope_parameters": {"rope_theta": 100.0}}),
    "llama, one key head, wide heads": ("llama", {"num_key_value_heads": 1, "head_dim": 10}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"}),
    "llama, llama3 rope": ("llama", {"rope_parameters": LLAMA3_ROPE}),
    "llama, linear rope": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4}},
    ),
}
OUR_CASES = {
    "gpt2, tied": ModelConfig.gpt2(VOCAB_SIZE, 2, 3, 24, 48),
    "gpt2, untied": ModelConfig.gpt2(VOCAB_SIZE, 2, 3, 24, 48, d_ff=40, tied_head=False),
    "llama, grouped, tied": ModelConfig.llama(VOCAB_SIZE, 2, 6, 24, 48, 40, n_kv_head=2),
    "llama, untied, biases": ModelConfig.llama(
        VOCAB_SIZE, 2, 4, 24, 48, 40, tied_head=False, attention_bias=True, attention_out_bias=True, ff_bias=True
    ),
    "llama, wide heads, gelu": ModelConfig.llama(VOCAB_SIZE, 2, 4, 24, 48, 40, d_head=10, activation="gelu_tanh"),
    "llama, llama3 rope": ModelConfig.llama(
        VOCAB_SIZE, 2, 3, 24, 48, 40, rope_theta=500.0, rope_scaling=RopeScaling("llama3", 4.0, 1.0, 4.0, 16)
    ),
    "llama, linear rope": ModelConfig.llama(VOCAB_SIZE, 2, 3, 24, 48, 40, rope_scaling=RopeScaling("linear", 3.0)),
}


@torch.no_grad()
def randomize(model):
    """Draw weights that are large enough for attention and positions to change the logits."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.25 + (parameter.ndim == 1))
    return model.eval()


def random_hf_model(family, **changes):
    import transformers

    ids = {"bos_token_id": 0, "eos_token_id": [0, 3]}
    rope = changes.get("rope_parameters")
    if rope and transformers.__version__.startswith("4."):  # the names before version 5
        changes = changes | {"rope_theta": rope["rope_theta"], "rope_scaling": rope if "factor" in rope else None}
    if family == "gpt2":
        config = transformers.GPT2Config(**SMALL_GPT2 | ids | changes)
        return randomize(transformers.GPT2LMHeadModel(config))
    return randomize(transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL_LLAMA | ids | changes)))


@torch.no_grad()
def assert_same_logits(ours, theirs, atol=1e-4):
    token_ids = torch.randint(VOCAB_SIZE, (2, 48), generator=torch.Generator().manual_seed(2))
    expected = theirs(token_ids).logits
    assert expected.std() > 0.5, "the oracle's logits are too flat to show a difference"
    torch.testing.assert_close(ours(token_ids), expected, rtol=1e-4, atol=atol)


@pytest.mark.parity
@pytest.mark.parametrize("case", HF_CASES)
def test_checkpoint_of_transformers_gives_its_logits(case, tmp_path):
    family, changes = HF_CASES[case]
    theirs = random_hf_model(family, **changes)
    theirs.save_pretrained(tmp_path)
    header = read_header(tmp_path)
    assert (header.bos_id, header.eos_ids, header.dtype) == (0, {0, 3}, "float32")
    assert_same_logits(load_model(header), theirs)


@pytest.mark.parity
@pytest.mark.parametrize("case", OUR_CASES)
def test_transformers_gives_our_logits_of_our_checkpoint(case, tmp_path, word_tokenizer_json):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ours = randomize(Transformer(OUR_CASES[case]))
    save_checkpoint(tmp_path, ours, word_tokenizer_json, bos_id=0, eos_ids={0, 4}, provenance={})
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert_same_logits(ours, theirs)
    assert theirs.generation_config.eos_token_id == [0, 4]

    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.model_max_length) == ("<s>", "<s>", 48)
    assert tokenizer("once upon a time").input_ids == [0, 1, 2, 3, 4]
    assert tokenizer.decode([0, 1, 2, 3, 4], skip_special_tokens=True) == "once upon a time"


@pytest.mark.parity
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_sharded_checkpoint(family, tmp_path):
    theirs = random_hf_model(family, tie_word_embeddings=False)
    theirs.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_same_logits(load_model(read_header(tmp_path)), theirs)


@pytest.mark.parity
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_half_precision_on_disk(family, dtype, tmp_path):
    from transformers import AutoModelForCausalLM

    random_hf_model(family).to(dtype).save_pretrained(tmp_path)
    header = read_header(tmp_path)
    assert f"torch.{header.dtype}" == str(dtype)
    # read again, since .float() would keep the rounded rotary frequencies
    assert_same_logits(load_model(header), AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32))


@pytest.mark.parity
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_our_half_precision_checkpoint_opens_in_transformers(dtype, tmp_path, word_tokenizer_json):
    from transformers import AutoModelForCausalLM

    ours = randomize(Transformer(OUR_CASES["llama, grouped, tied"]))
    save_checkpoint(tmp_path, ours, word_tokenizer_json, bos_id=0, eos_ids={0}, dtype=dtype, provenance={})
    assert AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").dtype == getattr(torch, dtype)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert_same_logits(load_model(read_header(tmp_path)), theirs)


@pytest.mark.parity
def test_bare_model_without_a_prefix(tmp_path):
    """Old GPT-2 checkpoints, such as the first one, have `wte.weight` and not `transformer.wte.weight`."""
    theirs = random_hf_model("gpt2")
    theirs.transformer.save_pretrained(tmp_path)
    assert "wte.weight" in read_header(tmp_path).tensors
    assert_same_logits(load_model(read_header(tmp_path)), theirs)


def rewritten(directory, change):
    """Pass the tensors of a checkpoint through a function; return the model that transformers then reads from it."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    path = directory / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


@pytest.mark.parity
@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize(("family", "embedding"), [("gpt2", "wte.weight"), ("llama", "embed_tokens.weight")])
def test_tied_matrix_that_is_stored_only_as_the_head(family, embedding, prefix, tmp_path):
    """`save_model` of safetensors keeps one name of a shared tensor (transformers#41038)."""
    random_hf_model(family, tie_word_embeddings=True).save_pretrained(tmp_path)
    base = "transformer." if family == "gpt2" else "model."

    def only_head(tensors):
        tensors["lm_head.weight"] = tensors.pop(base + embedding)
        return tensors if prefix else {name.removeprefix(base): tensor for name, tensor in tensors.items()}

    theirs = rewritten(tmp_path, only_head)
    header = read_header(tmp_path)
    assert header.config.tied_head
    assert_same_logits(load_model(header), theirs)


@pytest.mark.parity
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_tied_flag_beside_another_head(family, tmp_path):
    random_hf_model(family, tie_word_embeddings=True).save_pretrained(tmp_path)
    head = torch.randn(VOCAB_SIZE, 24, generator=torch.Generator().manual_seed(5))
    theirs = rewritten(tmp_path, lambda tensors: tensors | {"lm_head.weight": head})
    assert not torch.equal(theirs.lm_head.weight, theirs.get_input_embeddings().weight)
    assert_same_logits(load_model(read_header(tmp_path)), theirs)


DEFAULT_SIZES = {
    "llama": {"max_position_embeddings": 2048, "num_attention_heads": 32, "hidden_size": 64, "num_key_value_heads": 32},
    "gpt2": {"n_positions": 1024, "n_head": 12, "n_embd": 24},
}


@pytest.mark.parity
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_defaults_of_transformers_and_weights_in_float64(family, tmp_path):
    """A config.json without most fields, beside weights in float64, EOS -1 and a byte order mark in every JSON file."""
    sizes = DEFAULT_SIZES[family]
    random_hf_model(family, **sizes).double().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    kept = {"vocab_size", "model_type", "hidden_size", "n_embd", "intermediate_size", "num_hidden_layers", "n_layer"}
    content = {name: value for name, value in config.items() if name in kept} | {"eos_token_id": -1}
    (tmp_path / "config.json").write_text(json.dumps(content))
    (tmp_path / "generation_config.json").unlink()
    theirs = rewritten(tmp_path, dict)
    (tmp_path / "config.json").write_text(json.dumps(content), encoding="utf-8-sig")
    header = read_header(tmp_path)
    assert (header.dtype, header.config.max_seq_len) == ("float64", 1024 if family == "gpt2" else 2048)
    assert header.eos_ids == frozenset()
    assert_same_logits(load_model(header), theirs)


@pytest.mark.parity
def test_greedy_tokens_and_loss_agree(tmp_path):
    theirs = random_hf_model("llama", num_key_value_heads=2, eos_token_id=None)
    theirs.save_pretrained(tmp_path)
    ours = load_model(read_header(tmp_path))
    prompt = torch.tensor([[0, 5, 9]])
    mask = torch.ones_like(prompt)
    expected = theirs.generate(prompt, attention_mask=mask, max_new_tokens=30, do_sample=False, pad_token_id=0)
    token_ids = prompt
    with torch.no_grad():
        for _ in range(30):
            token_ids = torch.cat((token_ids, ours(token_ids)[:, -1:].argmax(-1)), dim=1)
        loss = torch.nn.functional.cross_entropy(ours(expected)[0, :-1], expected[0, 1:])
        torch.testing.assert_close(loss, theirs(expected, labels=expected).loss, rtol=1e-5, atol=1e-5)
    assert token_ids.tolist() == expected.tolist()


@pytest.mark.parametrize(("n_head", "n_kv_head"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_explicit_attention_equals_the_fused_kernel(n_head, n_kv_head, masked):
    generator = torch.Generator().manual_seed(3)
    q = torch.randn(2, n_head, 11, 8, generator=generator, dtype=torch.float64)
    k, v = torch.randn(2, 2, n_kv_head, 11, 8, generator=generator, dtype=torch.float64)
    mask = None
    if masked:
        mask = (torch.rand(2, 1, 11, 11, generator=generator) < 0.5) | torch.eye(11, dtype=torch.bool)
    torch.testing.assert_close(attend(q, k, v, mask), attend_explicitly(q, k, v, mask), rtol=1e-10, atol=1e-12)
