"""Export of llama2.c files: the published model there and back, and what the format cannot express."""

import json

import numpy as np
import pytest
import torch
from gguf_files import SPM_TOKENS, gguf_bytes, llama_fields, llama_tensors

from tinystory.checkpoint import load_model, read_header, save_checkpoint
from tinystory.checkpoint.formats.gguf import import_gguf
from tinystory.checkpoint.formats.llama2c import import_llama2c
from tinystory.checkpoint.formats.llama2c_export import export_llama2c
from tinystory.errors import CheckpointError, TinystoryError
from tinystory.model.config import ModelConfig, RopeScaling
from tinystory.model.transformer import Transformer

N = len(SPM_TOKENS)
SHAPE = (N, 1, 2, 8, 32, 12, 1)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A tiny llama with llama2.c's kind of tokenizer."""
    folder = tmp_path_factory.mktemp("spm")
    (folder / "m.gguf").write_bytes(gguf_bytes(llama_fields(N), llama_tensors(N)))
    import_gguf(folder / "m.gguf", folder / "model")
    return folder / "model"


def test_published_model_comes_back_as_it_was(shared_data, tmp_path):
    files = shared_data / "checkpoints/stories260K"
    import_llama2c(files / "stories260K.bin", files / "tok512.bin", tmp_path / "first")
    tokenizer = export_llama2c(tmp_path / "first", tmp_path / "model.bin")
    theirs, ours = (np.fromfile(path, "<f4") for path in (files / "stories260K.bin", tmp_path / "model.bin"))
    assert (theirs[:7].view("<i4") == ours[:7].view("<i4")).all()
    np.testing.assert_allclose(ours[7:], theirs[7:], rtol=0, atol=1e-5)  # cosines and sines are rounded otherwise
    assert (ours != theirs).sum() < 512 * 8
    import_llama2c(tmp_path / "model.bin", tokenizer, tmp_path / "second")
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    pieces = (files / "tok512.bin").read_bytes()
    assert tokenizer.stat().st_size == len(pieces)
    assert tokenizer.read_bytes()[:4] == pieces[:4]


def test_untied_head_and_grouped_heads_come_back(source, tmp_path):
    torch.manual_seed(1)
    model = Transformer(ModelConfig.llama(N, 2, 4, 16, 32, 12, 2, tied_head=False))
    ids = {"bos_id": 1, "eos_ids": {1, 2}}
    save_checkpoint(tmp_path / "first", model, (source / "tokenizer.json").read_text(), **ids, provenance={})
    tokenizer = export_llama2c(tmp_path / "first", tmp_path / "m.bin")
    import_llama2c(tmp_path / "m.bin", tokenizer, tmp_path / "second")
    assert read_header(tmp_path / "second").config == model.config
    back = load_model(read_header(tmp_path / "second")).state_dict()
    assert all(torch.equal(back[name], weight) for name, weight in model.state_dict().items())


UNKNOWN = {
    "norm_eps": ModelConfig.llama(*SHAPE, norm_eps=1e-6),
    "rope_theta": ModelConfig.llama(*SHAPE, rope_theta=500_000.0),
    "rope_scaling": ModelConfig.llama(*SHAPE, rope_scaling=RopeScaling("linear", 2.0)),
    "attention_bias": ModelConfig.llama(*SHAPE, attention_bias=True, attention_out_bias=True),
    "ff_bias": ModelConfig.llama(*SHAPE, ff_bias=True),
    "d_head": ModelConfig.llama(*SHAPE, d_head=6),
    "activation": ModelConfig.llama(*SHAPE, activation="gelu"),
    "'gpt2'": ModelConfig.gpt2(N, 1, 2, 8, 32),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_models_that_the_format_cannot_express_are_refused(source, tmp_path, name):
    tokenizer_json = (source / "tokenizer.json").read_text()
    model = Transformer(UNKNOWN[name])
    save_checkpoint(tmp_path / "model", model, tokenizer_json, bos_id=1, eos_ids={2}, provenance={})
    refused(tmp_path / "model", f"llama2.c.*{name}|{name} is .* in llama2.c it is")


def refused(directory, pattern):
    target = directory.parent / "m.bin"
    with pytest.raises(CheckpointError, match=pattern) as caught:
        export_llama2c(directory, target)
    assert "\n" not in str(caught.value)
    assert not target.exists()
    assert not target.with_suffix(".tokenizer.bin").exists()


def test_tokenizers_that_the_format_cannot_express_are_refused(source, checkpoint, tmp_path):
    def saved(change, bos_id=1, eos_ids=frozenset({2})):
        document = json.loads((source / "tokenizer.json").read_text())
        change(document)
        model = Transformer(ModelConfig.llama(*SHAPE))
        text = json.dumps(document)
        save_checkpoint(tmp_path / "model", model, text, bos_id=bos_id, eos_ids=eos_ids, provenance={})
        return tmp_path / "model"

    def swap(document):
        merges = document["model"]["merges"]
        first, second = merges.index(["b", "c"]), merges.index(["t", "h"])
        merges[first], merges[second] = merges[second], merges[first]

    def interleave(document):  # two ways to one token, with another token between them
        merges = document["model"]["merges"]
        merges.append(merges.pop(next(i for i, pair in enumerate(merges) if "".join(pair) == "abc")))

    refused(saved(lambda document: None, bos_id=2), "BOS is 2")
    refused(saved(lambda document: None, eos_ids={5}), "ends with token 5")
    refused(saved(lambda document: document.update(normalizer=None)), "a space before a text")
    refused(saved(lambda document: document["model"].update(byte_fallback=False)), "another way")
    refused(saved(interleave), "an order that no scores give")
    export_llama2c(saved(swap), tmp_path / "swapped.bin")  # another order, which scores can give
    refused(checkpoint, "BOS is 0")


def test_unwritable_target(source, tmp_path):
    with pytest.raises(TinystoryError, match="cannot write"):
        export_llama2c(source, tmp_path / "no" / "folder.bin")
