"""GGUF files: there and back, by hand, in other programs; quantised weights, rotary rows, variants."""

import itertools
import sys

import numpy as np
import pytest
import torch
from gguf_files import SPM_TOKENS, gguf_bytes, llama_fields, llama_tensors, quantised

from tinystory.checkpoint import load_model, read_header, save_checkpoint
from tinystory.checkpoint.formats import gguf_values
from tinystory.checkpoint.formats.gguf import import_gguf, read_gguf
from tinystory.checkpoint.formats.gguf_export import export_gguf
from tinystory.checkpoint.shipped import SHIPPED_MODELS
from tinystory.errors import CheckpointError, TinystoryError, UsageError
from tinystory.model.config import ModelConfig, RopeScaling
from tinystory.model.transformer import Transformer, rope_tables, rotate

N = len(SPM_TOKENS)
DEFAULT = SHIPPED_MODELS["default"]
BLOCKS = {  # number, values and bytes of a block, places of its float16 scales
    "Q8_0": (8, 32, 34, (0,)),
    "Q4_0": (2, 32, 18, (0,)),
    "Q2_K": (10, 256, 84, (80, 82)),
    "Q3_K": (11, 256, 110, (108,)),
    "Q4_K": (12, 256, 144, (0, 2)),
    "Q5_K": (13, 256, 176, (0, 2)),
    "Q6_K": (14, 256, 210, (208,)),
}


def state_of(directory):
    return load_model(read_header(directory)).state_dict()


def greedy(directory, n_tokens):
    model, ids = load_model(read_header(directory)), [read_header(directory).bos_id]
    with torch.no_grad():
        for _ in range(n_tokens):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids


def random_checkpoint(config, tokenizer, out):
    torch.manual_seed(5)
    model = Transformer(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    save_checkpoint(out, model, tokenizer.to_json(), bos_id=0, eos_ids={0}, provenance={"data": "none"})
    return out


def write(path, fields, tensors, **options):
    path.write_bytes(gguf_bytes(fields, tensors, **options))
    return path


# --- there and back ---


def test_default_model_goes_there_and_back(tmp_path):
    export_gguf(DEFAULT, tmp_path / "model.gguf")
    import_gguf(tmp_path / "model.gguf", tmp_path / "back")
    before, after = read_header(DEFAULT), read_header(tmp_path / "back")
    assert after.config == before.config
    assert (after.dtype, after.bos_id, after.eos_ids) == (before.dtype, before.bos_id, before.eos_ids)
    old, new = state_of(DEFAULT), state_of(tmp_path / "back")
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)
    assert greedy(DEFAULT, 25) == greedy(tmp_path / "back", 25)
    assert after.provenance["original"] == before.provenance
    assert after.provenance["imported_from"]["files"] == ["model.gguf"]


def test_f16_is_near(tmp_path):
    export_gguf(DEFAULT, tmp_path / "model.gguf", "F16")
    import_gguf(tmp_path / "model.gguf", tmp_path / "back")
    old, new = state_of(DEFAULT), state_of(tmp_path / "back")
    for name in old:
        torch.testing.assert_close(new[name], old[name], rtol=2**-11, atol=2**-25)


def test_q8_0_is_near(tmp_path):
    pytest.importorskip("gguf", reason="Q8_0 is written by the package gguf")
    export_gguf(DEFAULT, tmp_path / "model.gguf", "Q8_0")
    import_gguf(tmp_path / "model.gguf", tmp_path / "back")
    old, new = state_of(DEFAULT), state_of(tmp_path / "back")
    for name in old:
        if old[name].ndim == 1:
            assert torch.equal(old[name], new[name])
        else:  # half a step, and the rounding of the scale to float16
            blocks = old[name].reshape(-1, 32)
            largest = blocks.abs().amax(dim=1, keepdim=True)
            assert ((new[name].reshape(-1, 32) - blocks).abs() <= largest * (0.5 / 127 + 2**-11) + 1e-7).all()
    ids = torch.tensor([[0, 5, 300, 17, 900, 42]])
    logits = [load_model(read_header(d))(ids) for d in (DEFAULT, tmp_path / "back")]
    assert (logits[0] - logits[1]).abs().max() < 0.5
    assert (tmp_path / "model.gguf").stat().st_size < 0.6 * (DEFAULT / "model.safetensors").stat().st_size


LLAMA3 = {"rope_theta": 500_000.0, "rope_scaling": RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)}
CONFIGS = {
    "grouped heads": ModelConfig.llama(300, 2, 4, 32, 64, 48, n_kv_head=2),
    "one key head, wide heads": ModelConfig.llama(300, 1, 2, 32, 64, 48, n_kv_head=1, d_head=24, tied_head=False),
    "biases": ModelConfig.llama(300, 1, 4, 32, 64, 48, 2, attention_bias=True, attention_out_bias=True, ff_bias=True),
    "linear": ModelConfig.llama(300, 1, 2, 32, 64, 48, rope_scaling=RopeScaling("linear", 2.5), norm_eps=1e-6),
    "llama 3": ModelConfig.llama(300, 1, 2, 128, 64, 48, **LLAMA3),
    "llama 3, unusual": ModelConfig.llama(
        300, 1, 2, 128, 64, 48, rope_scaling=RopeScaling("llama3", 3.0, 1.5, 6.25, 2000)
    ),
    "gpt2": ModelConfig.gpt2(300, 2, 4, 32, 64),
    "gpt2, untied": ModelConfig.gpt2(300, 1, 2, 32, 64, d_ff=40, tied_head=False),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_every_variant_goes_there_and_back(tokenizer, tmp_path, case):
    before = random_checkpoint(CONFIGS[case], tokenizer, tmp_path / "before")
    export_gguf(before, tmp_path / "model.gguf")
    import_gguf(tmp_path / "model.gguf", tmp_path / "after")
    assert read_header(tmp_path / "after").config == CONFIGS[case]
    ids = torch.randint(300, (2, 40), generator=torch.Generator().manual_seed(2))
    logits = [load_model(read_header(d))(ids) for d in (before, tmp_path / "after")]
    assert torch.equal(*logits)


def test_doubled_head_of_equal_bytes_is_tied(tmp_path):
    tensors = llama_tensors(N)
    tensors["output.weight"] = tensors["token_embd.weight"]
    assert read_gguf(write(tmp_path / "m.gguf", llama_fields(N), tensors)).config.tied_head
    tensors["output.weight"] = tensors["output.weight"] + 1
    assert not read_gguf(write(tmp_path / "m.gguf", llama_fields(N), tensors)).config.tied_head


# --- the rows of q and k ---


def test_rows_lie_in_the_file_as_pairs(tokenizer, tmp_path):
    """Row 2i of a head in the file is row i of ours, and row 2i + 1 is row i + D/2; written out by hand."""
    reader_type = pytest.importorskip("gguf", reason="the package gguf reads the file here").GGUFReader
    before = random_checkpoint(CONFIGS["grouped heads"], tokenizer, tmp_path / "before")
    export_gguf(before, tmp_path / "model.gguf")
    tensors = {tensor.name: tensor.data for tensor in reader_type(tmp_path / "model.gguf").tensors}
    state = state_of(before)
    for name, n_head in (("q", 4), ("k", 2)):
        ours, theirs = state[f"blocks.1.attn.{name}.weight"].numpy(), tensors[f"blk.1.attn_{name}.weight"]
        for head, i in itertools.product(range(n_head), range(4)):
            assert (theirs[8 * head + 2 * i] == ours[8 * head + i]).all()
            assert (theirs[8 * head + 2 * i + 1] == ours[8 * head + i + 4]).all()
    assert (tensors["blk.1.attn_v.weight"] == state["blocks.1.attn.v.weight"].numpy()).all()


def test_turning_halves_of_imported_rows_equals_turning_pairs(tmp_path):
    """The scores of attention with the file's own rows, turned as llama.cpp does, equal ours after the import."""
    tensors = llama_tensors(N)
    import_gguf(write(tmp_path / "m.gguf", llama_fields(N), tensors), tmp_path / "out")
    model = load_model(read_header(tmp_path / "out"))
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))

    def pairs_turned(rows):  # (5, D), the position is the row
        out = torch.empty_like(rows)
        for position, i in itertools.product(range(5), range(0, 4, 2)):
            angle = torch.tensor(position * 10_000 ** (-i / 4))
            a, b = rows[position, i], rows[position, i + 1]
            out[position, i] = a * angle.cos() - b * angle.sin()
            out[position, i + 1] = a * angle.sin() + b * angle.cos()
        return out

    wq, wk = torch.tensor(tensors["blk.0.attn_q.weight"]), torch.tensor(tensors["blk.0.attn_k.weight"])
    expected = pairs_turned(x @ wq[4:].T) @ pairs_turned(x @ wk.T).T  # the second head
    tables = rope_tables(model.config, torch.arange(5), torch.float32)
    attention = model.blocks[0].attn
    q, k = rotate(attention.q(x)[:, 4:], *tables), rotate(attention.k(x), *tables)
    torch.testing.assert_close(q @ k.T, expected, rtol=1e-4, atol=1e-4)


# --- storage types ---


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [32, 8, 256])
def test_versions_and_alignments(tmp_path, version, alignment):
    tensors = llama_tensors(N)
    fields = llama_fields(N) | ({} if alignment == 32 else {"general.alignment": alignment})
    path = write(tmp_path / "m.gguf", fields, tensors, version=version, alignment=alignment)
    import_gguf(path, tmp_path / "out")
    assert (state_of(tmp_path / "out")["embed.weight"].numpy() == tensors["token_embd.weight"]).all()


@pytest.mark.parametrize(("number", "dtype"), [(1, "float16"), (30, "bfloat16")])
def test_half_floats_need_no_package(tmp_path, monkeypatch, number, dtype):
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setitem(sys.modules, "gguf.quants", None)
    expected, tensors = {}, {}
    for name, values in llama_tensors(N).items():
        half = torch.tensor(values).to(getattr(torch, dtype))
        expected[name] = half.float()
        tensors[name] = (number, values.shape, half.view(torch.uint8).numpy().tobytes())
    import_gguf(write(tmp_path / "m.gguf", llama_fields(N), tensors), tmp_path / "out")
    assert torch.equal(state_of(tmp_path / "out")["embed.weight"], expected["token_embd.weight"])
    assert read_header(tmp_path / "out").dtype == dtype


@pytest.mark.parametrize("kind", BLOCKS)
def test_quantised_weights(tmp_path, monkeypatch, kind):
    gguf = pytest.importorskip("gguf", reason="quantised weights are read by the package gguf")
    monkeypatch.setattr(gguf_values, "_VALUES_AT_ONCE", 1000)  # three rows at a time
    fields, tensors = llama_fields(N, d_model=256, d_ff=256), llama_tensors(N, d_model=256, d_ff=256)
    number, block, n_bytes, scales = BLOCKS[kind]
    tensors = {
        name: quantised(number, block, n_bytes, scales, values.shape) if values.ndim == 2 else values
        for name, values in tensors.items()
    }
    import_gguf(write(tmp_path / "m.gguf", fields, tensors), tmp_path / "out")
    state = state_of(tmp_path / "out")
    for name, ours in (("token_embd", "embed"), ("blk.0.ffn_down", "blocks.0.ff.down")):
        _, shape, raw = tensors[f"{name}.weight"]
        rows = np.frombuffer(raw, np.uint8).reshape(shape[0], -1)
        expected = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[kind])
        assert (state[f"{ours}.weight"].numpy() == expected).all()
        assert expected.std() > 0.01
    if kind == "Q8_0":  # by hand: a float16 scale and 32 signed bytes
        blocks = np.frombuffer(tensors["token_embd.weight"][2], np.uint8).reshape(-1, 34)
        by_hand = blocks[:, :2].copy().view("<f2").astype(np.float32) * blocks[:, 2:].view(np.int8)
        assert (state["embed.weight"].numpy() == by_hand.reshape(N, 256)).all()


def test_quantised_weights_without_the_package(tmp_path, monkeypatch, checkpoint):
    fields, tensors = llama_fields(N, d_model=32), llama_tensors(N, d_model=32)
    tensors["token_embd.weight"] = quantised(8, 32, 34, (0,), (N, 32))
    path = write(tmp_path / "m.gguf", fields, tensors)
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setitem(sys.modules, "gguf.quants", None)
    with pytest.raises(CheckpointError, match=r"Q8_0; reading them needs pip install 'tinystory\[gguf\]'"):
        import_gguf(path, tmp_path / "out")
    with pytest.raises(UsageError, match=r"pip install 'tinystory\[gguf\]'"):
        export_gguf(checkpoint, tmp_path / "e.gguf", "Q8_0")
    export_gguf(checkpoint, tmp_path / "e.gguf", "F16")
    import_gguf(tmp_path / "e.gguf", tmp_path / "back")


# --- the file that is written ---


def test_package_gguf_reads_what_is_written(tokenizer, tmp_path):
    gguf = pytest.importorskip("gguf", reason="the package gguf reads the file here")
    before = random_checkpoint(CONFIGS["gpt2"], tokenizer, tmp_path / "before")
    export_gguf(before, tmp_path / "model.gguf", "Q8_0")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    values = {name: field.contents() for name, field in reader.fields.items()}
    assert values["general.architecture"] == "gpt2"
    assert values["general.file_type"] == 7
    assert values["gpt2.context_length"] == 64
    assert values["tokenizer.ggml.pre"] == "gpt-2"
    assert values["tokenizer.ggml.tokens"] == [tokenizer.fast.id_to_token(i) for i in range(300)]
    assert values["tokenizer.ggml.token_type"] == [3] + [1] * 299
    assert values["tokenizer.ggml.bos_token_id"] == values["tokenizer.ggml.eos_token_id"] == 0
    assert values["tokenizer.ggml.add_bos_token"] is True
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["blk.0.attn_qkv.weight"] == kinds["token_embd.weight"] == "Q8_0"
    assert kinds["position_embd.weight"] == kinds["blk.0.attn_qkv.bias"] == "F32"
    qkv = torch.tensor(gguf.quants.dequantize(next(t.data for t in reader.tensors if "0.attn_qkv.w" in t.name), 8))
    expected = torch.cat([state_of(before)[f"blocks.0.attn.{name}.weight"] for name in "qkv"])
    torch.testing.assert_close(qkv, expected, rtol=0, atol=0.006)


def test_rows_that_q8_0_cannot_divide_are_f16(tokenizer, tmp_path):
    gguf = pytest.importorskip("gguf", reason="Q8_0 is written by the package gguf")
    before = random_checkpoint(CONFIGS["gpt2, untied"], tokenizer, tmp_path / "before")  # d_ff is 40
    export_gguf(before, tmp_path / "model.gguf", "Q8_0")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert (kinds["blk.0.ffn_down.weight"], kinds["blk.0.ffn_up.weight"]) == ("F16", "Q8_0")


def test_rows_without_a_token_are_padded(tokenizer, tmp_path):
    config = ModelConfig.llama(320, 1, 2, 32, 64, 48)
    before = random_checkpoint(config, tokenizer, tmp_path / "before")
    export_gguf(before, tmp_path / "model.gguf")
    import_gguf(tmp_path / "model.gguf", tmp_path / "after")
    assert read_header(tmp_path / "after").config == config
    assert '"[PAD' not in (tmp_path / "after/tokenizer.json").read_text()


def test_what_llama_cpp_cannot_run_is_not_exported(tokenizer, word_tokenizer_json, checkpoint, tmp_path):
    def refused(fragment, directory, dtype="F32", error=CheckpointError):
        target = tmp_path / "model.gguf"
        target.write_bytes(b"old")
        with pytest.raises(error) as caught:
            export_gguf(directory, target, dtype)
        assert fragment in str(caught.value)
        assert "\n" not in str(caught.value)
        assert target.read_bytes() == b"old"

    def saved(name, config, tokenizer_json=None, scale=1.0, eos_ids=frozenset({0})):
        tokenizer_json = tokenizer_json or tokenizer.to_json()
        model = Transformer(config)
        torch.nn.init.constant_(model.embed.weight, scale)
        save_checkpoint(tmp_path / name, model, tokenizer_json, bos_id=0, eos_ids=eos_ids, provenance={})
        return tmp_path / name

    tiny = ModelConfig.llama(300, 1, 2, 32, 64, 48)
    other_words = tokenizer.to_json().replace('"use_regex":true', '"use_regex":false', 1)
    refused("gelu", saved("gelu", ModelConfig.llama(300, 1, 2, 32, 64, 48, activation="gelu")))
    refused("gelu_tanh", saved("exact gelu", ModelConfig.gpt2(300, 1, 2, 32, 64, activation="gelu")))
    refused("byte-level", saved("words", ModelConfig.llama(5, 1, 2, 32, 64, 48), word_tokenizer_json))
    refused("pre_tokenizer", saved("other words", tiny, other_words))
    refused("0 tokens that end", saved("endless", tiny, eos_ids=frozenset()))
    refused("too large for F16", saved("large", tiny, scale=1e5), "F16")
    refused("one of F32, F16, Q8_0", checkpoint, "Q4_K", UsageError)
    refused("No such file", tmp_path / "nowhere")
    with pytest.raises(TinystoryError, match="cannot write"):
        export_gguf(checkpoint, tmp_path / "no" / "such" / "folder.gguf")
    assert not list(tmp_path.glob(".*.partial"))
