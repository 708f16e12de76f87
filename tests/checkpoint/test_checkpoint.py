"""Save, find, hash and load checkpoints, and crash while saving."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tinystory.checkpoint import hash as model_hash_module
from tinystory.checkpoint import hub, load_model, locate, model_hash, read_header, save_checkpoint
from tinystory.checkpoint.arrays import read_arrays
from tinystory.checkpoint.hf_layout import from_hf_config, to_hf_config
from tinystory.errors import CheckpointError, TinystoryError, UsageError
from tinystory.model.config import ModelConfig, RopeScaling
from tinystory.model.transformer import Transformer
from tinystory.session import loading
from tinystory.studio.backend import ModelBackend

LLAMA = ModelConfig.llama(16, 2, 2, 8, 32, 12, n_kv_head=1)
GPT2 = ModelConfig.gpt2(16, 2, 2, 8, 32)
ROOT = Path(__file__).resolve().parents[2]


def make_model(config=LLAMA, seed=0):
    model = Transformer(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture
def save(word_tokenizer_json):
    """Give `save_checkpoint` with defaults for the arguments that most tests do not need."""

    def save_with_defaults(directory, model=None, **changes):
        arguments = {"bos_id": 0, "eos_ids": {0}, "provenance": {"seed": 0}} | changes
        save_checkpoint(directory, model or make_model(), word_tokenizer_json, **arguments)

    return save_with_defaults


def run_python(code, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, timeout=60, env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    )  # fmt: skip


# --- save and load ---


@st.composite
def configs(draw):
    n_head = draw(st.sampled_from([1, 2, 3, 4]))
    small = st.integers(1, 9)
    shared = {
        "vocab_size": draw(st.integers(5, 40)),
        "n_layer": draw(st.integers(1, 2)),
        "n_head": n_head,
        "d_model": n_head * draw(st.integers(1, 4)) * 2,
        "max_seq_len": draw(small),
        "d_ff": draw(small),
        "tied_head": draw(st.booleans()),
        "norm_eps": draw(st.sampled_from([1e-6, 1e-5, 1e-3])),
        "activation": draw(st.sampled_from(["gelu", "gelu_tanh", "silu"])),
    }
    if draw(st.booleans()):
        return ModelConfig.gpt2(**shared)
    bias = draw(st.booleans())
    scalings = [None, RopeScaling("linear", 2.5), RopeScaling("llama3", 8.0, 1.0, 3.5, 64)]
    return ModelConfig.llama(
        **shared,
        n_kv_head=draw(st.sampled_from([n for n in (1, 2, 3, 4) if n_head % n == 0])),
        d_head=draw(st.sampled_from([0, 2, 6])),
        attention_bias=bias,
        attention_out_bias=bias,
        ff_bias=draw(st.booleans()),
        rope_theta=draw(st.sampled_from([100.0, 500_000.0])),
        rope_scaling=draw(st.sampled_from(scalings)),
    )


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=configs(), ids=st.tuples(st.none() | st.integers(0, 4), st.frozensets(st.integers(0, 4))))
def test_round_trip(config, ids, tmp_path, save):
    model = make_model(config)
    save(tmp_path / "model", model, bos_id=ids[0], eos_ids=ids[1], provenance={"steps": 3, "név": "é"})
    header = read_header(tmp_path / "model")
    assert (header.config, header.bos_id, header.eos_ids) == (config, *ids)
    assert (header.dtype, header.provenance) == ("float32", {"steps": 3, "név": "é"})
    loaded = load_model(header)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert (loaded.head.weight is loaded.embed.weight) == config.tied_head
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    token_ids_ = torch.arange(min(5, config.max_seq_len))[None]
    with torch.no_grad():  # not bit-equal: an axis of size one may have other strides, and so use another kernel
        torch.testing.assert_close(loaded(token_ids_), model.eval()(token_ids_))


def test_files_of_a_checkpoint(tmp_path, save):
    directory = tmp_path / "new" / "model"
    save(directory, model_card="# A model\n", extra_files={"optimizer.safetensors": b"\1\2"}, eos_ids={4, 0})
    assert sorted(path.name for path in directory.iterdir()) == [
        "README.md", "config.json", "generation_config.json", "model.safetensors", "optimizer.safetensors",
        "tinystory.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert list(directory.parent.iterdir()) == [directory]
    assert len({path.stat().st_mode for path in directory.iterdir()}) == 1, "all as readable as the umask lets them"
    with safe_open(directory / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118  (not a dict)
    config = json.loads((directory / "config.json").read_text())
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": config["rope_theta"]}
    assert config["dtype"] == config["torch_dtype"] == "float32"
    assert json.loads((directory / "generation_config.json").read_text()) == {
        "bos_token_id": 0,
        "eos_token_id": [0, 4],
    }


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
@pytest.mark.parametrize("on_disk", ["float32", "bfloat16", "float16"])
def test_dtypes(tmp_path, save, config, on_disk):
    model = make_model(config)
    save(tmp_path / "model", model, dtype=on_disk)
    header = read_header(tmp_path / "model")
    assert header.dtype == on_disk
    for dtype in ("float32", "bfloat16", "float64"):
        loaded = load_model(header, dtype=dtype)
        for name, value in model.state_dict().items():
            expected = value.to(getattr(torch, on_disk)).to(getattr(torch, dtype))
            assert torch.equal(loaded.state_dict()[name], expected), name


def test_wrong_arguments_of_load(tmp_path, save):
    save(tmp_path / "model")
    header = read_header(tmp_path / "model")
    with pytest.raises(UsageError, match="float32, bfloat16, float16, float64"):
        load_model(header, dtype="int8")
    for device in ("gpu", "cuda:99", "", "meta:x"):
        with pytest.raises(UsageError, match="not available"):
            load_model(header, device=device)


MEASURE = """
import sys, torch, tinystory.model.transformer, tinystory.checkpoint as c
from pathlib import Path
def status(key):
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(key)) * 1024
torch.set_num_threads(1)
torch.aminmax(torch.ones(9) @ torch.ones(9, 9))
before = status("VmRSS")
model = c.load_model(c.read_header(Path(sys.argv[1])))
n_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
print((status("VmHWM") - before) / n_bytes, "sympy" in sys.modules)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's memory counters")
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_peak_memory_of_load(tmp_path, save, family):
    """Loading takes at most 1.5 times the weights, even if a fused tensor is split and transposed."""
    if family == "gpt2":
        config = ModelConfig.gpt2(8192, 6, 8, 512, 64, tied_head=False)
    else:
        config = ModelConfig.llama(16384, 6, 8, 512, 64, 1536)
    save(tmp_path / "model", make_model(config), dtype="float32" if family == "gpt2" else "bfloat16")
    done = run_python(MEASURE, tmp_path / "model", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    ratio, heavy_import = done.stdout.split()
    assert 0.9 < float(ratio) < 1.5
    assert heavy_import == "False", "a random draw on the meta device imports sympy and 800 other modules"


# --- variants of config.json ---

HF_LLAMA = to_hf_config(LLAMA, "float32", 0, {0})
HF_GPT2 = to_hf_config(GPT2, "float32", 0, {0})


@pytest.mark.parametrize(
    "hf_config",
    [
        {"model_type": "gpt_neo", "hidden_size": "not ours to judge"},
        HF_GPT2 | {"scale_attn_by_inverse_layer_idx": True},
        HF_GPT2 | {"scale_attn_weights": False},
        HF_GPT2 | {"add_cross_attention": True},
        HF_GPT2 | {"activation_function": "relu"},
        HF_LLAMA | {"hidden_act": "relu2"},
        HF_LLAMA | {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}},
        HF_LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        HF_LLAMA | {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        HF_LLAMA | {"quantization_config": {"quant_method": "gptq"}},
    ],
)
def test_variants_left_to_transformers(hf_config):
    assert from_hf_config(hf_config) is None


def test_both_forms_of_rope_are_read():
    old = {key: value for key, value in HF_LLAMA.items() if key not in ("rope_parameters", "rope_scaling")}
    linear = RopeScaling("linear", 2.0)
    for fields, theta, scaling in (
        ({"rope_theta": 7.0}, 7.0, None),
        ({"rope_theta": 7.0, "rope_scaling": {"type": "linear", "factor": 2}}, 7.0, linear),
        ({"rope_theta": 7.0, "rope_scaling": {"rope_type": "linear", "factor": 2}}, 7.0, linear),
        ({"rope_theta": 7.0, "rope_parameters": {"rope_type": "default", "rope_theta": 9.0}}, 9.0, None),
        ({"rope_theta": None, "rope_parameters": None, "rope_scaling": None}, 10_000.0, None),
    ):
        config = from_hf_config(old | fields)
        assert (config.rope_theta, config.rope_scaling) == (theta, scaling), fields


def test_fields_that_config_json_lacks_have_the_defaults_of_transformers():
    assert from_hf_config({"model_type": "llama"}) == ModelConfig.llama(
        32000, 32, 32, 4096, 2048, 11008, tied_head=False, norm_eps=1e-6
    )
    assert from_hf_config({"model_type": "gpt2"}) == ModelConfig.gpt2(50257, 12, 12, 768, 1024)
    assert from_hf_config({"model_type": "gpt2", "n_ctx": 512}).max_seq_len == 512
    assert from_hf_config({"model_type": "gpt2", "n_ctx": 512, "n_positions": 256}).max_seq_len == 256
    others = {"hidden_size": 8, "n_embd": 768, "num_attention_heads": 2, "max_position_embeddings": 7, "n_positions": 9}
    config = from_hf_config({"model_type": "gpt2", **others, "num_hidden_layers": 3})
    assert (config.d_model, config.n_head, config.n_layer, config.max_seq_len) == (8, 2, 3, 7)
    llama3 = {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope = from_hf_config({"model_type": "llama", "rope_scaling": llama3}).rope_scaling
    assert rope == RopeScaling("llama3", 2.0, 1.0, 4.0, 2048)


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_a_warning_says_what_transformers_would_add_to_greedy(tmp_path, save, file):
    """Many models of others have a repetition_penalty, with which transformers gives another text."""
    save(tmp_path / "model")
    path = tmp_path / "model" / file
    content = json.loads(path.read_text())
    if file == "config.json":
        (tmp_path / "model" / "generation_config.json").unlink()
    neutral = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "bad_words_ids": None, "temperature": 0.5}
    path.write_text(json.dumps(content | neutral))
    assert read_header(tmp_path / "model").warnings == ()
    path.write_text(json.dumps(content | {"repetition_penalty": 1.1, "suppress_tokens": [3] * 99}))
    (warning,) = read_header(tmp_path / "model").warnings
    assert "would write with repetition_penalty 1.1, suppress_tokens;" in warning


@pytest.mark.parametrize(
    ("config", "fragment"),
    [
        (ModelConfig.gpt2(16, 1, 2, 8, 32, ff_bias=False), "biases everywhere"),
        (ModelConfig.llama(16, 1, 2, 8, 32, 12, attention_bias=True), "one attention_bias"),
        (ModelConfig.llama(16, 1, 3, 8, 32, 12, d_head=4), "not a multiple"),
    ],
)
def test_config_that_transformers_could_not_express_is_not_saved(tmp_path, save, config, fragment):
    with pytest.raises(CheckpointError, match=fragment):
        save(tmp_path / "model", make_model(config))
    assert not list(tmp_path.iterdir())


def with_tensors(directory, **changes):
    """Rewrite the weights with some tensors changed, added, or removed (None)."""
    tensors = load_file(directory / "model.safetensors") | {k.replace("__", "."): v for k, v in changes.items()}
    save_file({k: v for k, v in tensors.items() if v is not None}, directory / "model.safetensors")


def test_known_extra_tensors_are_accepted(tmp_path, save):
    save(tmp_path / "llama")
    embed = make_model().embed.weight.detach()
    with_tensors(
        tmp_path / "llama",
        lm_head__weight=embed.clone(),
        model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(2),
    )
    assert torch.equal(load_model(read_header(tmp_path / "llama")).head.weight, embed)
    save(tmp_path / "gpt2", make_model(GPT2))
    mask = torch.ones(1, 1, 32, 32, dtype=torch.bool)
    with_tensors(
        tmp_path / "gpt2", transformer__h__1__attn__bias=mask, transformer__h__1__attn__masked_bias=torch.tensor(-1e4)
    )
    load_model(read_header(tmp_path / "gpt2"))


@pytest.mark.parametrize("config", [LLAMA, GPT2])
def test_doubled_tied_head_that_differs_is_a_head_of_its_own(tmp_path, save, config):
    """Version 5 of transformers unties these two, whatever config.json says."""
    save(tmp_path / "model", make_model(config))
    head = make_model(seed=1).embed.weight.detach()
    with_tensors(tmp_path / "model", lm_head__weight=head)
    header = read_header(tmp_path / "model")
    assert header.config == replace(config, tied_head=False)
    model = load_model(header)
    assert torch.equal(model.head.weight, head)
    assert torch.equal(model.embed.weight, make_model(config).embed.weight)
    if config is LLAMA:
        assert np.array_equal(read_arrays(header)["head.weight"], head.numpy())


def test_a_copy_of_the_embedding_is_not_counted(tmp_path, save):
    save(tmp_path / "model")
    tensors = read_header(tmp_path / "model").tensors
    with_tensors(tmp_path / "model", lm_head__weight=make_model().embed.weight.detach().clone())
    assert read_header(tmp_path / "model").tensors.keys() == tensors.keys()


def test_doubled_head_of_another_shape_is_refused(tmp_path, save):
    save(tmp_path / "model")
    with_tensors(tmp_path / "model", lm_head__weight=torch.zeros(17, 8))
    with pytest.raises(
        CheckpointError, match=r"lm_head\.weight has the shape \(17, 8\); config.json asks for \(16, 8\)"
    ):
        read_header(tmp_path / "model")


def test_an_untied_model_needs_its_embedding(tmp_path, save):
    save(tmp_path / "model", make_model(replace(LLAMA, tied_head=False)))
    with_tensors(tmp_path / "model", model__embed_tokens__weight=None)
    with pytest.raises(CheckpointError, match=r"lack the tensor model\.embed_tokens\.weight"):
        read_header(tmp_path / "model")


@pytest.mark.parametrize("config", [LLAMA, replace(LLAMA, tied_head=False), GPT2])
def test_weights_in_float64_are_loaded(tmp_path, save, config):
    save(tmp_path / "model", make_model(config))
    names = read_header(tmp_path / "model").tensors
    path = tmp_path / "model" / "model.safetensors"
    save_file({name: tensor.double() for name, tensor in load_file(path).items()}, path)
    header = read_header(tmp_path / "model")
    assert (header.dtype, header.tensors.keys()) == ("float64", names.keys())
    expected = make_model(config).state_dict()
    for name, weight in load_model(header).state_dict().items():
        assert torch.equal(weight, expected[name])
    assert load_model(header, "float64").embed.weight.dtype == torch.float64
    if config.family == "llama":
        arrays = read_arrays(header)
        assert all(np.array_equal(arrays[name], expected[name].numpy()) for name in arrays)


def test_weights_in_float64_that_do_not_fit_are_refused(tmp_path, save):
    save(tmp_path / "model")
    with_tensors(tmp_path / "model", model__norm__weight=torch.full((8,), 1e300, dtype=torch.float64))
    header = read_header(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight does not fit into torch\.float32"):
        load_model(header)
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight has numbers of float64 that do not fit"):
        read_arrays(header)


# --- saving over, failing, crashing ---


def test_save_over_a_checkpoint(tmp_path, save):
    save(tmp_path / "model", model_card="old card")
    save(tmp_path / "model", make_model(GPT2), provenance={"seed": 1})
    header = read_header(tmp_path / "model")
    assert (header.config, header.provenance) == (GPT2, {"seed": 1})
    assert not (tmp_path / "model" / "README.md").exists()
    assert os.listdir(tmp_path) == ["model"]


def test_save_through_a_link_keeps_the_link(tmp_path, save):
    (tmp_path / "link").symlink_to("target")
    save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert read_header(tmp_path / "link").directory == tmp_path / "target"


def test_save_never_deletes_what_is_not_a_checkpoint(tmp_path, save):
    (tmp_path / "novel.txt").write_text("Once upon a time")
    with pytest.raises(UsageError, match=r"novel\.txt"):
        save(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="Not a directory"):
        save(tmp_path / "file")
    save(tmp_path / "model")
    (tmp_path / "model" / "notes.txt").write_text("dear diary")
    with pytest.raises(UsageError, match=r"notes\.txt"):
        save(tmp_path / "model")
    (tmp_path / "readme only").mkdir()
    (tmp_path / "readme only" / "README.md").write_text("mine")
    with pytest.raises(UsageError, match=r"README\.md"):
        save(tmp_path / "readme only")
    assert (tmp_path / "novel.txt").exists()


def test_weights_that_are_not_finite_are_not_saved(tmp_path, save):
    save(tmp_path / "model")
    broken = make_model(seed=1)
    with torch.no_grad():
        broken.blocks[1].ff.down.weight[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"blocks\.1\.ff\.down\.weight"):
        save(tmp_path / "model", broken)
    with torch.no_grad():
        broken.blocks[1].ff.down.weight[0, 0] = 1e6
    with pytest.raises(CheckpointError, match="float16"):
        save(tmp_path / "model", broken, dtype="float16")
    assert torch.equal(load_model(read_header(tmp_path / "model")).embed.weight, make_model().embed.weight)


def test_ids_and_tokenizer_must_fit_the_model(tmp_path, save):
    with pytest.raises(CheckpointError, match="id 9 is not in the tokenizer"):
        save(tmp_path / "model", eos_ids={9})
    with pytest.raises(CheckpointError, match="the tokenizer has the id 4"):
        save(tmp_path / "model", make_model(ModelConfig.llama(4, 1, 2, 8, 32, 12)))
    assert not list(tmp_path.iterdir())


def test_full_disk(tmp_path, save):
    save(tmp_path / "model")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (100, 3000):  # too small for the first JSON file, then for the weights
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(TinystoryError, match="cannot save") as caught:
                save(tmp_path / "model", make_model(seed=1))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "\n" not in str(caught.value)
        assert os.listdir(tmp_path) == ["model"]
        assert torch.equal(load_model(read_header(tmp_path / "model")).embed.weight, make_model().embed.weight)


def test_parent_that_is_a_file(tmp_path, save):
    (tmp_path / "file").write_text("")
    with pytest.raises(TinystoryError, match=r"cannot save|Not a directory"):
        save(tmp_path / "file" / "model")


@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize(
    ("function", "call"), [("mkdir", 0), *(("replace", i) for i in range(3)), *(("fsync", i) for i in range(9))]
)
def test_failing_system_call_leaves_a_checkpoint(tmp_path, save, monkeypatch, function, call, once):
    """One whole checkpoint is left for every call that can fail, even if undoing the save fails, too."""
    save(tmp_path / "model", provenance={"seed": "old"})
    genuine, n_calls = getattr(os, function), 0

    def failing(*arguments, **options):
        nonlocal n_calls
        n_calls += 1
        if n_calls == call + 1 or (n_calls > call and not once):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return genuine(*arguments, **options)

    monkeypatch.setattr(os, function, failing)
    expected = "new"
    try:
        save(tmp_path / "model", make_model(seed=1), provenance={"seed": "new"})
    except TinystoryError as error:
        expected = "new" if read_header(tmp_path / "model").provenance["seed"] == "new" else "old"
        message = str(error)
        assert "Input/output error" in message
        assert ("the old files are untouched" in message) == (expected == "old")
        assert ("is saved" in message) == (expected == "new")
    monkeypatch.undo()
    header = read_header(tmp_path / "model")
    assert header.provenance["seed"] == expected
    load_model(header)
    assert not list(tmp_path.glob(".model.partial*"))
    if once and expected == "old":
        assert os.listdir(tmp_path) == ["model"], "the old directory is back in its place"
    save(tmp_path / "model", provenance={"seed": "last"})
    assert read_header(tmp_path / "model").provenance["seed"] == "last"
    assert os.listdir(tmp_path) == ["model"]


KILL = """
import os, pathlib, shutil, sys, torch
from tinystory.checkpoint import load_model, read_header, save_checkpoint
from tinystory.model.config import ModelConfig
from tinystory.model.transformer import Transformer
torch.set_num_threads(1)
directory, tokenizer = pathlib.Path(sys.argv[1]) / "model", sys.argv[2]
model = Transformer(ModelConfig.llama(16, 1, 2, 8, 32, 12))
def save(name):
    save_checkpoint(directory, model, tokenizer, bos_id=0, eos_ids={0}, provenance={"name": name})
def dying(function, countdown):
    def call(*arguments, **options):
        if not countdown:
            os._exit(9)  # as from SIGKILL: no handler, no clean-up
        countdown.pop()
        return function(*arguments, **options)
    return call
seen = []
for n_calls in range(100):
    shutil.rmtree(directory, ignore_errors=True)
    save("old")
    pid = os.fork()
    if pid == 0:
        countdown = [None] * n_calls
        for name in ("replace", "fsync", "mkdir", "unlink", "rmdir", "close"):
            setattr(os, name, dying(getattr(os, name), countdown))
        save("new")
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    header = read_header(directory)
    load_model(header)
    seen.append(header.provenance["name"])
    save("next")
    assert read_header(directory).provenance["name"] == "next"
    assert not directory.with_name(".model.previous").exists()
    if status == 0:
        break
print(*seen)
"""


@pytest.mark.slow
def test_kill_at_any_moment_leaves_a_checkpoint(tmp_path, word_tokenizer_json):
    """A child process dies at its first, second … system call of a save over a checkpoint."""
    done = run_python(KILL, tmp_path, word_tokenizer_json, OMP_NUM_THREADS="1", PYTHONWARNINGS="ignore")
    assert done.returncode == 0, done.stderr
    seen = done.stdout.split()
    assert len(seen) > 15
    assert seen == sorted(seen, key=["old", "new"].index), "old until the swap, new from then on"
    assert {seen[0], seen[-1]} == {"old", "new"}


def test_stale_leftovers_are_removed_and_fresh_ones_kept(tmp_path, save):
    for name, age in ((".model.partial-1", 7200), (".model.partial-2", 10)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    save(tmp_path / "model")
    assert sorted(os.listdir(tmp_path)) == [".model.partial-2", "model"]


# --- finding ---


def test_latest_of_a_training_run(tmp_path, save):
    run = tmp_path / "checkpoint"
    save(run / "step-000100", provenance={"step": 100})
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        read_header(run)
    (run / "latest").symlink_to("step-000100")
    assert read_header(run).directory == run / "step-000100"
    assert locate(str(run)) == run / "step-000100"
    assert model_hash(run) == model_hash(run / "step-000100")
    (run / "latest").unlink()
    save(run / "latest", provenance={"step": 200})
    assert read_header(run).provenance == {"step": 200}


def test_latest_that_leads_out_of_the_run_is_not_followed(tmp_path, save):
    save(tmp_path / "elsewhere")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "latest").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        read_header(tmp_path / "run")


def test_header_stays_with_its_checkpoint_when_latest_moves(tmp_path, save):
    save(tmp_path / "step-1", make_model(seed=1))
    save(tmp_path / "step-2", make_model(seed=2))
    (tmp_path / "latest").symlink_to("step-1")
    header = read_header(tmp_path)
    (tmp_path / "latest").unlink()
    (tmp_path / "latest").symlink_to("step-2")
    assert torch.equal(load_model(header).embed.weight, make_model(seed=1).embed.weight)


@pytest.mark.parametrize(
    ("model", "fragment"),
    [
        ("./gone", "there is no directory"),
        ("/gone/model", "there is no directory"),
        ("~/no such model", "there is no directory"),
        ("runs/demo/checkpoint", "there is no directory"),
        (Path("gone"), "there is no directory"),
        ("two words", "neither a directory nor"),
        ("org/model:main", "neither a directory nor"),
        ("\x1b[2J", "neither a directory nor"),
        ("a\0b", "neither a directory nor"),
        ("x" * 5000, "neither a directory nor"),
        ("", "no config.json"),
    ],
)
def test_what_looks_like_a_path_is_never_sent_to_the_hub(tmp_path, monkeypatch, model, fragment):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "something").write_text("")
    monkeypatch.setattr(hub, "download", lambda _: pytest.fail("asked the hub"))
    with pytest.raises(CheckpointError, match=fragment) as caught:
        locate(model)
    assert str(caught.value).isprintable()


def test_existing_directory_wins_over_the_hub(tmp_path, save, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "download", lambda _: pytest.fail("asked the hub"))
    save(tmp_path / "org" / "name")
    assert locate("org/name") == tmp_path / "org" / "name"
    with pytest.raises(pytest.fail.Exception):
        locate("org/other")


LOCATE = """
import sys, time
from tinystory.checkpoint import locate, read_header
started = time.monotonic()
try:
    print(locate(sys.argv[1]))
except Exception as error:
    print(type(error).__name__, str(error))
print(time.monotonic() - started, "torch" in sys.modules)
"""


class FakeHub(BaseHTTPRequestHandler):
    """The part of the hub's API that one download needs; a subclass sets `files` and `requests`."""

    def do_GET(self):
        self.requests.append(self.path)
        path = self.path.split("?")[0]
        commit = "0" * 40
        if path == "/api/models/org/name" or path.startswith("/api/models/org/name/revision/"):
            names = [{"rfilename": name} for name in self.files]
            self.reply({"id": "org/name", "sha": commit, "siblings": names, "private": False})
        elif path.startswith("/api/models/org/name/tree/"):
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": f"{i:040d}"}
                for i, (name, content) in enumerate(self.files.items())
            ]
            self.reply(entries)
        elif path.startswith("/org/name/resolve/") and path.split("/", 5)[-1] in self.files:
            name = path.split("/", 5)[-1]
            number = list(self.files).index(name)
            self.reply(self.files[name], {"ETag": f'"{number:040d}"', "X-Repo-Commit": commit})
        else:
            self.reply({}, {"X-Error-Code": "RepoNotFound"}, 404)

    do_HEAD = do_GET

    def reply(self, content, headers=None, status=200):
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(raw)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(raw)

    def log_message(self, *_):
        pass


@pytest.fixture
def fake_hub(tmp_path):
    """Start a hub on this machine, and set the environment that leads to it; the user's cache is not used."""
    handler = type("Handler", (FakeHub,), {"files": {}, "requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    handler.environment = {
        "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
    }  # fmt: skip
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.slow
def test_download_from_the_hub_takes_no_code_and_no_pickles(tmp_path, save, fake_hub):
    save(tmp_path / "model")
    fake_hub.files.update({path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()})
    unwanted = ["pytorch_model.bin", "modeling_evil.py", "model.pt", "onnx/config.json", "optimizer.safetensors"]
    fake_hub.files.update(dict.fromkeys(unwanted, b"evil"))
    done = run_python(LOCATE, "org/name", **fake_hub.environment)
    directory = Path(done.stdout.splitlines()[0])
    assert read_header(directory).config == LLAMA, done.stdout
    assert done.stdout.split()[-1] == "False"
    assert not [request for request in fake_hub.requests if any(name in request for name in unwanted)]
    assert model_hash(directory) == model_hash(tmp_path / "model")

    fake_hub.requests.clear()
    offline = fake_hub.environment | {"HF_HUB_OFFLINE": "1"}
    for environment in (fake_hub.environment, offline):
        assert run_python(LOCATE, "org/name", **environment).stdout.splitlines()[0] == str(directory)
    assert not fake_hub.requests, "what is in the cache needs no network"


@pytest.mark.parametrize(
    ("case", "fragment"),
    [
        ("unknown", "the hub has no model of that name"),
        ("pickled", "has no model.safetensors"),
        ("offline", "offline mode is on"),
        ("refused", "cannot be reached"),
        ("no name", "cannot be reached"),
    ],
)
def test_hub_model_that_cannot_be_had(fake_hub, case, fragment):
    fake_hub.files.update({"config.json": b"{}", "pytorch_model.bin": b"evil"})
    environment = fake_hub.environment | {
        "offline": {"HF_HUB_OFFLINE": "1"},
        "refused": {"HF_ENDPOINT": "http://127.0.0.1:9"},
        "no name": {"HF_ENDPOINT": "http://hub.invalid"},
    }.get(case, {})
    done = run_python(LOCATE, "org/other" if case == "unknown" else "org/name", **environment)
    error, last = done.stdout.splitlines()
    assert error.startswith("CheckpointError")
    assert fragment in error
    assert float(last.split()[0]) < 5
    assert len(fake_hub.requests) <= 2, "no storm of retries"
    assert not done.stderr


@pytest.mark.slow
def test_hub_that_never_answers_is_given_up_within_ten_seconds(fake_hub):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        done = run_python(LOCATE, "org/name", **fake_hub.environment | {"HF_ENDPOINT": endpoint})
    assert "cannot be reached" in done.stdout
    assert float(done.stdout.split()[-2]) < 10


# --- the hash ---


@pytest.fixture
def cache(tmp_path, monkeypatch):
    path = tmp_path / "cache" / "model_hash.json"
    monkeypatch.setattr(model_hash_module, "hashes_file", lambda: path)
    return path


def test_hash_names_the_content(tmp_path, save, cache):
    save(tmp_path / "a")
    save(tmp_path / "b", provenance={"other": "provenance"}, model_card="other card")
    first = model_hash(tmp_path / "a")
    assert len(first) == 64
    assert model_hash(tmp_path / "b") == first
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        shutil.rmtree(tmp_path / "b")
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        path = tmp_path / "b" / name
        path.write_bytes(path.read_bytes()[:-1] + b" ")
        assert model_hash(tmp_path / "b") != first, name


def test_hash_is_remembered_until_a_file_changes(tmp_path, save, cache, monkeypatch):
    save(tmp_path / "a")
    first = model_hash(tmp_path / "a")
    n_reads = 0
    genuine = model_hash_module.hashlib.sha256

    def counting():
        nonlocal n_reads
        n_reads += 1
        return genuine()

    monkeypatch.setattr(model_hash_module.hashlib, "sha256", counting)
    assert model_hash(tmp_path / "a") == first
    assert n_reads == 0
    times = (tmp_path / "a" / "config.json").stat()
    save(tmp_path / "a", make_model(seed=1))
    os.utime(tmp_path / "a" / "config.json", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert model_hash(tmp_path / "a") != first
    assert n_reads == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"x": 5}', b'{"' + b"[" * 9999])
def test_broken_hash_cache_is_ignored(tmp_path, save, cache, content):
    save(tmp_path / "a")
    cache.parent.mkdir()
    cache.write_bytes(content)
    first = model_hash(tmp_path / "a")
    assert model_hash(tmp_path / "a") == first
    cache.unlink()
    cache.mkdir()  # cannot be written
    assert model_hash(tmp_path / "a") == first
    assert os.listdir(cache.parent) == ["model_hash.json"]


def test_a_hash_cache_that_is_a_link_stays_one(tmp_path, save, cache):
    """It was once replaced by a file, so a cache that lies on another disk was written once and never again."""
    save(tmp_path / "a")
    cache.parent.mkdir()
    (tmp_path / "elsewhere.json").write_text("{}")
    cache.symlink_to(tmp_path / "elsewhere.json")
    first = model_hash(tmp_path / "a")
    assert cache.is_symlink()
    ((_, remembered),) = json.loads((tmp_path / "elsewhere.json").read_text()).values()
    assert remembered == first


def test_a_model_whose_files_are_replaced_has_no_other_models_hash(tmp_path, checkpoint, cache, monkeypatch):
    """The hash was once computed from the files of that moment, not from those that were loaded."""
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    loaded = loading.load(str(folder))
    backend = ModelBackend.open(str(folder), "float32", "cpu")
    slow = ModelBackend.open(str(folder), "float32", "cpu")
    assert backend.wait(lambda: False)
    backend._thread.join()  # afterwards the backend knows the hash
    first = backend.model_hash()
    assert first == model_hash(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(CheckpointError, match="have changed since"):
        _ = loaded.hash
    assert backend.model_hash() == first
    assert slow.model_hash() == ""
    with pytest.raises(TinystoryError, match="changed while they were read"):
        slow.wait(lambda: False)


def test_hash_of_files_that_change_while_they_are_read_is_not_remembered(tmp_path, save, cache, monkeypatch):
    save(tmp_path / "a")
    stamps = iter(["before", "after"])
    monkeypatch.setattr(model_hash_module, "_stamp", lambda directory, names: next(stamps))
    with pytest.raises(CheckpointError, match="have changed"):
        model_hash(tmp_path / "a")
    assert not cache.exists()


def test_hash_of_what_is_no_checkpoint(tmp_path, cache):
    with pytest.raises(CheckpointError, match="is empty"):
        model_hash(tmp_path)


def test_reading_and_saving_modules_import_without_torch():
    done = run_python(
        "import sys, tinystory.checkpoint, tinystory.checkpoint.formats.llama2c; print('torch' in sys.modules)"
    )
    assert done.stdout.split() == ["False"], done.stderr
