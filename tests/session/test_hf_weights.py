"""Models that transformers runs: each weight comes from the files, or the model is refused in one line."""

import json
import time

import pytest
import torch

from tinystory.checkpoint import read_header
from tinystory.cli import main
from tinystory.errors import CheckpointError, TinystoryError
from tinystory.session.loading import load

pytestmark = pytest.mark.parity

SIZES = {
    "vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40,
    "max_position_embeddings": 64,
}  # fmt: skip
TOKENIZER = {
    "version": "1.0", "model": {"type": "WordLevel", "vocab": {"<s>": 0, "once": 1, "upon": 2}, "unk_token": "<s>"},
    "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"},
}  # fmt: skip
KINDS = {
    "mistral": ("Mistral", {"num_key_value_heads": 2}),
    "qwen2": ("Qwen2", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "neox": ("GPTNeoX", {}),
    "mixtral": ("Mixtral", {"num_key_value_heads": 2, "num_local_experts": 2}),
}
EXPERT = "model.layers.1.block_sparse_moe.experts.1"
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    models = {}
    for kind, (family, more) in KINDS.items():
        config = getattr(transformers, f"{family}Config")(**SIZES, **more, bos_token_id=0, eos_token_id=0)
        model = getattr(transformers, f"{family}ForCausalLM")(config)
        directory = tmp_path_factory.mktemp(kind)
        model.save_pretrained(directory)
        models[kind] = directory
    return models


@pytest.fixture
def damaged(models, tmp_path):
    """Return a function that writes a copy of a model with other tensors or another config."""

    def write(kind, change=lambda tensors: tensors, **config):
        from safetensors.torch import load_file, save_file

        tensors = load_file(models[kind] / "model.safetensors")
        save_file(change(tensors), tmp_path / "model.safetensors", metadata={"format": "pt"})
        content = json.loads((models[kind] / "config.json").read_text()) | config
        if config:
            content.pop("layer_types", None)
        (tmp_path / "config.json").write_text(json.dumps(content))
        (tmp_path / "tokenizer.json").write_text(json.dumps(TOKENIZER))
        return tmp_path

    return write


def without(*names):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


def renamed(rename):
    return lambda tensors: {rename(name): tensor for name, tensor in tensors.items()}


def having(**more):
    return lambda tensors: tensors | {name.replace("__", "."): tensor for name, tensor in more.items()}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "t5", "num_layers": 1}, "no causal language model of the type 't5'"),
        (
            {"model_type": "llava", "text_config": {"model_type": "llama"}},
            "no causal language model of the type 'llava'",
        ),
        ({"model_type": "bart", "d_model": 8, "is_encoder_decoder": True}, "'bart' is an encoder-decoder"),
    ],
)
def test_what_is_no_model_of_stories_is_named(config, message, damaged):
    """The message was the name of a Python class, or that the download is incomplete."""
    small = dict.fromkeys(("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads"), 1)
    with pytest.raises(CheckpointError) as error:
        load(str(damaged("mistral", **small, **config)))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_model_loads_without_a_warning(kind, damaged):
    """Tied heads, old names, experts that are merged, and names without a prefix are all in order."""
    assert load(str(damaged(kind))).warnings == ()
    assert load(str(damaged(kind, renamed(lambda name: name.removeprefix("model."))))).warnings == ()


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("mistral", without(Q_PROJ), f"lack the tensor '{Q_PROJ}'"),
        ("mistral", without("lm_head.weight"), "lack the tensor 'lm_head.weight'"),
        ("mistral", without("model.norm.weight"), "lack the tensor 'model.norm.weight'"),
        ("mistral", lambda tensors: having(v_head__weight=torch.ones(9999))(without(Q_PROJ)(tensors)), Q_PROJ),
        ("mistral", renamed(lambda name: f"module.{name}"), "and 18 more"),
        ("qwen2", without("model.embed_tokens.weight"), "model.embed_tokens.weight"),
        ("qwen2", without("model.layers.0.self_attn.q_proj.bias"), "model.layers.0.self_attn.q_proj.bias"),
        ("neox", without("embed_out.weight"), "lack the tensor 'lm_head.weight'"),
        ("neox", without("gpt_neox.layers.0.mlp.dense_h_to_4h.bias"), "gpt_neox.layers.0.mlp.dense_h_to_4h.bias"),
        ("mixtral", without(f"{EXPERT}.w1.weight"), f"lack the tensor '{EXPERT}.w1.weight'"),
        ("mixtral", without(*(f"{EXPERT}.w{n}.weight" for n in (1, 2, 3))), f"lack the tensors '{EXPERT}.w1.weight', "),
        ("mixtral", without("model.layers.1.block_sparse_moe.gate.weight"), "model.layers.1.mlp.gate.weight"),
    ],
)  # fmt: skip
def test_missing_tensors_are_refused_by_name(kind, change, message, damaged):
    """transformers once filled them with random numbers, so two runs under one hash differed."""
    with pytest.raises(CheckpointError) as error:
        load(str(damaged(kind, change)))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("config", [{"return_dict": False}, {"torchscript": True}, {"output_attentions": True}])
def test_the_form_of_the_result_is_ours_to_choose(damaged, config):
    """A config.json can ask for a plain tuple, in which we would not find the logits."""
    plain = load(str(damaged("mistral"))).session.prefill([[1, 2]])
    assert torch.equal(load(str(damaged("mistral", **config))).session.prefill([[1, 2]]), plain)


def test_missing_tensors_are_refused_before_the_weights_are_read(damaged, monkeypatch):
    import transformers

    def read(*_arguments, **_options):
        raise AssertionError("the weights were read")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", read)
    with pytest.raises(CheckpointError, match=Q_PROJ):
        load(str(damaged("mistral", without(Q_PROJ))))


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        ("mistral", {"num_hidden_layers": 0}, "num_hidden_layers is 0; it must be 1 to 21"),
        ("mistral", {"num_hidden_layers": 10**8}, "num_hidden_layers is 100000000; it must be 1 to 21"),
        ("mistral", {"num_hidden_layers": 1}, "more layers than config.json: the tensors 'model.layers.1."),
        ("mistral", {"num_hidden_layers": 3}, "lack the tensors 'model.layers.2."),
        ("mistral", {"intermediate_size": 44}, "has the shape (32, 40); config.json asks for (32, 44)"),
        ("mistral", {"intermediate_size": 10**9}, "far larger than its weights"),
        ("mistral", {"vocab_size": 10**9}, "far larger than its weights"),
        ("mistral", {"vocab_size": 59}, "'lm_head.weight' has the shape (61, 32); config.json asks for (59, 32)"),
        ("mistral", {"hidden_size": 2**40}, "far larger than its weights"),
        ("mistral", {"num_labels": 10**9}, "num_labels is 1000000000; it must be at most 100000"),
        (
            "neox",
            {"hidden_size": 64},
            "'gpt_neox.embed_in.weight' has the shape (61, 32); config.json asks for (61, 64)",
        ),
        ("mixtral", {"num_local_experts": 4}, "config.json asks for (4, "),
        ("mixtral", {"num_local_experts": 1}, "config.json asks for (1, "),
    ],
)
def test_sizes_that_do_not_fit_the_file_are_refused_at_once(kind, config, message, damaged):
    start = time.monotonic()
    with pytest.raises(TinystoryError) as error:
        load(str(damaged(kind, **config)))
    assert message in str(error.value)
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("kind", ["mistral", "llama"])
def test_extra_tensors_are_one_warning_in_both_sessions(kind, damaged, capsys):
    """TRL's value head, an empty tensor and a stray bias are not used, and a user hears of them once."""
    extra = having(
        v_head__summary__weight=torch.ones(3), empty=torch.zeros(0),
        model__layers__0__self_attn__q_proj__bias=torch.ones(32),
    )  # fmt: skip
    family = {"model_type": kind, "architectures": [f"{kind.title()}ForCausalLM"], "hidden_act": "silu"}
    plain = damaged("mistral", **family)
    arguments = ["once", "-n", "8", "-s", "3", "-d", "sample 1"]
    assert main(["generate", "-m", str(plain), *arguments]) == 0
    story, quiet = capsys.readouterr()
    assert "does not use" not in quiet
    directory = damaged("mistral", extra, **family)
    assert (read_header(directory).config is None) == (kind == "mistral")
    assert main(["generate", "-m", str(directory), *arguments]) == 0
    out, err = capsys.readouterr()
    assert out == story
    names = "'empty', 'model.layers.0.self_attn.q_proj.bias', 'v_head.summary.weight'"
    assert err.count(f"tinystory: {directory}: the weights have the tensors {names}, which the model does not use") == 1
    assert main(["generate", "-m", str(directory), "-q", *arguments]) == 0
    assert "does not use" not in capsys.readouterr().err


def test_a_missing_tensor_ends_a_command_in_one_line(damaged, capsys):
    directory = damaged("mistral", without(Q_PROJ))
    assert main(["generate", "-m", str(directory), "once", "-n", "4"]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert Q_PROJ in err


FOREIGN = {
    "_attn_implementation": "flash_attention_2", "attn_implementation": "kernels-community/flash-attn2",
    "_attn_implementation_internal": "paged|eager", "experts_implementation": "deepgemm",
    "_experts_implementation": "sonicmoe", "auto_map": {"AutoModelForCausalLM": "someone/else--code.Model"},
    "use_kernels": True, "kernel_config": {"kernel_mapping": {}}, "fusion_config": {"unknown": True},
    "transformers_weights": "other.safetensors", "configuration_files": ["config.4.0.0.json"],
    "_name_or_path": "someone/else", "torchscript": True, "return_dict": False, "output_attentions": True,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["mistral", "mixtral"])
@pytest.mark.parametrize("key", ["all", *(pytest.param(key, marks=pytest.mark.slow) for key in FOREIGN)])
def test_what_would_fetch_or_run_code_is_left_out(kind, key, damaged):
    """The name of a kernel in config.json once reached transformers, which loads it from the hub."""
    plain = load(str(damaged(kind))).session.prefill([[1, 2, 3]])
    changes = FOREIGN if key == "all" else {key: FOREIGN[key]}
    directory = damaged(kind, **changes)
    (directory / "config.4.0.0.json").write_text("{}")
    session = load(str(directory)).session
    assert session.prefill([[1, 2, 3]]).equal(plain)
    assert session.model.config._attn_implementation in ("sdpa", "eager")
    assert not hasattr(session.model.config, "auto_map")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quantization_config": {"quant_method": "mxfp4"}}, "quantised with 'mxfp4'"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantised with 'fp8'"),
        ({"quantization_config": {"quant_method": ["gptq"]}}, "quantised with ['gptq']"),
        ({"quantization_config": {}}, "quantised with None"),
        ({"quantization_config": "gptq"}, "quantised with None"),
        ({"text_config": {"quantization_config": {"quant_method": "metal"}}}, "quantised with 'metal'"),
        ({"quantization_config": {"load_in_8bit": True}}, "bitsandbytes"),
        ({"vision_config": {"architecture": "hf-hub:someone/else"}}, "would be fetched"),
        ({"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}, "needs code of its own"),
        ({"model_type": "own"}, "does not recognize"),
    ],
)
def test_what_transformers_would_fetch_is_refused(config, message, damaged):
    with pytest.raises(CheckpointError) as error:
        load(str(damaged("mistral", **config)))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_adapter_of_peft_is_refused_where_peft_would_load_it(damaged, monkeypatch):
    import importlib.util

    directory = damaged("mistral")
    (directory / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}')
    load(str(directory))
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: name == "peft" or found(name, *rest))
    with pytest.raises(CheckpointError, match=r"adapter_config\.json would change the weights"):
        load(str(directory))
