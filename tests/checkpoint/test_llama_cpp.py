"""GGUF files in llama.cpp itself: stories, logits, tokens. llama-cpp-python is built from source, hence not in CI."""

import json

import numpy as np
import pytest
import torch
from gguf_files import SPM_TOKENS, gguf_bytes, llama_fields, llama_tensors

from tinystory.checkpoint import load_model, read_header, save_checkpoint
from tinystory.checkpoint.formats.gguf import import_gguf
from tinystory.checkpoint.formats.gguf_export import export_gguf
from tinystory.checkpoint.shipped import SHIPPED_MODELS
from tinystory.checkpoint.tokenizers import load_tokenizer
from tinystory.model.config import ModelConfig, RopeScaling
from tinystory.model.transformer import Transformer

pytestmark = pytest.mark.slow
llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

DEFAULT = SHIPPED_MODELS["default"]
PROMPTS = [
    "Once upon a time",
    "One day, a little girl named Lily",
    "Tom had a big red ball.",
    "The dog and the cat",
    '"Hello!" said the bear. It was 3 o\'clock',
]
TEXTS = [
    *PROMPTS,
    "I'll DON'T  say 12345 to   Zoë's \"friends\"…\n\n\tnaïve 🦊  x=1+2 $5.00 ½ ٣٤ 你好 end. \r\n ",
    " the  cat\n",
    "a",
]


def opened(path, **options):
    """A model with its cache in float32; in float16, one greedy story in five parts from ours."""
    options = {"n_ctx": 512, "type_k": 0, "type_v": 0, "flash_attn": False} | options
    return llama_cpp.Llama(str(path), n_threads=1, verbose=False, **options)


def logits_of(llama, ids):
    """The logits of the next token; (V,)."""
    llama.eval(ids)
    pointer = llama_cpp.llama_get_logits_ith(llama.ctx, -1)
    return np.ctypeslib.as_array(pointer, (llama.n_vocab(),)).copy()


@pytest.mark.parametrize("dtype", ["F32", "F16"])
def test_hundred_greedy_tokens_of_five_prompts(tmp_path, dtype):
    header = read_header(DEFAULT)
    model, tokenizer = load_model(header), load_tokenizer(header)
    export_gguf(DEFAULT, tmp_path / "model.gguf", dtype)
    llama = opened(tmp_path / "model.gguf")
    assert llama.token_bos() == llama.token_eos() == 0
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt)
        assert llama.tokenize(prompt.encode()) == ids
        llama.reset()
        theirs, new = [], ids
        for _ in range(100):
            new = [int(logits_of(llama, new).argmax())]
            theirs += new
        with torch.no_grad():
            for _ in range(100):
                ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        assert ids[-100:] == theirs, prompt


VARIANTS = {
    "grouped heads": ModelConfig.llama(2048, 2, 4, 64, 128, 96, n_kv_head=2, tied_head=False),
    "wide heads": ModelConfig.llama(2048, 2, 2, 64, 128, 96, n_kv_head=1, d_head=48),
    "biases": ModelConfig.llama(2048, 1, 4, 64, 128, 96, 2, attention_bias=True, attention_out_bias=True, ff_bias=True),
    "linear": ModelConfig.llama(2048, 2, 2, 64, 128, 96, rope_scaling=RopeScaling("linear", 2.5), norm_eps=1e-6),
    "llama 3": ModelConfig.llama(2048, 2, 2, 128, 128, 96, rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 64)),
    "gpt2": ModelConfig.gpt2(2048, 2, 4, 64, 128),
    "gpt2, untied": ModelConfig.gpt2(2048, 1, 2, 64, 128, d_ff=96, tied_head=False),
}


@pytest.mark.parametrize("case", VARIANTS)
def test_logits_of_every_variant(tmp_path, case):
    torch.manual_seed(5)
    model = Transformer(VARIANTS[case]).requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    tokenizer_json = (DEFAULT / "tokenizer.json").read_text()
    save_checkpoint(tmp_path / "model", model, tokenizer_json, bos_id=0, eos_ids={0}, provenance={})
    export_gguf(tmp_path / "model", tmp_path / "model.gguf")
    ids = torch.randint(2048, (1, 100), generator=torch.Generator().manual_seed(2))
    ours, theirs = model(ids)[0, -1], torch.tensor(logits_of(opened(tmp_path / "model.gguf"), ids[0].tolist()))
    # llama.cpp looks GELU up in a table of float16
    torch.testing.assert_close(theirs, ours, rtol=0, atol=(5e-3 if "gpt2" in case else 2e-4) * float(ours.std()))


FILE_TYPES = {
    "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K_M": 12, "Q4_K_M": 15, "Q5_K_M": 17,
    "Q6_K": 18, "BF16": 32,
}  # fmt: skip


@pytest.mark.parametrize("kind", FILE_TYPES)
def test_logits_of_files_that_llama_cpp_quantised(tmp_path, kind):
    """llama.cpp rounds activations, too, so the logits are near; those of the weights before are farther."""
    pytest.importorskip("gguf", reason="quantised weights are read by the package gguf")
    torch.manual_seed(5)
    model = Transformer(ModelConfig.llama(2048, 2, 4, 256, 128, 512, n_kv_head=2, tied_head=False)).requires_grad_(
        False
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    tokenizer_json = (DEFAULT / "tokenizer.json").read_text()
    save_checkpoint(tmp_path / "model", model, tokenizer_json, bos_id=0, eos_ids={0}, provenance={})
    export_gguf(tmp_path / "model", tmp_path / "model.gguf")
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = FILE_TYPES[kind], 1
    source, target = (str(tmp_path / name).encode() for name in ("model.gguf", "small.gguf"))
    assert llama_cpp.llama_model_quantize(source, target, parameters) == 0
    import_gguf(tmp_path / "small.gguf", tmp_path / "back")
    ids = torch.randint(2048, (1, 60), generator=torch.Generator().manual_seed(2))
    theirs = torch.tensor(logits_of(opened(tmp_path / "small.gguf"), ids[0].tolist()))
    before, after = model(ids)[0, -1], load_model(read_header(tmp_path / "back"))(ids)[0, -1]
    error, rounding = ((logits - theirs).std() / theirs.std() for logits in (after, before))
    assert error < 0.03
    assert error < rounding


@pytest.mark.parametrize(
    "pre", ["gpt-2", "phi-2", "olmo", "llama-bpe", "qwen2", "deepseek-r1-qwen", "smollm", "starcoder", "default"]
)
def test_byte_level_tokens(tmp_path, pre):
    document = json.loads((DEFAULT / "tokenizer.json").read_text())["model"]
    n = len(document["vocab"])
    fields = llama_fields(n) | {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": sorted(document["vocab"], key=document["vocab"].get),
        "tokenizer.ggml.token_type": [3] + [1] * (n - 1),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in document["merges"]],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
    }
    assert_same_tokens(tmp_path, gguf_bytes(fields, llama_tensors(n)))


@pytest.mark.parametrize("prefix", [True, False])
def test_sentence_piece_tokens(tmp_path, prefix):
    n = len(SPM_TOKENS)
    fields = llama_fields(n) | {"tokenizer.ggml.add_space_prefix": prefix}
    assert_same_tokens(tmp_path, gguf_bytes(fields, llama_tensors(n)))


def assert_same_tokens(folder, content):
    (folder / "model.gguf").write_bytes(content)
    import_gguf(folder / "model.gguf", folder / "out")
    tokenizer = load_tokenizer(read_header(folder / "out"))
    llama = opened(folder / "model.gguf", vocab_only=True)
    for text in TEXTS:
        assert llama.tokenize(text.encode()) == tokenizer.encode(text), text
        assert tokenizer.detokenize(tokenizer.encode(text)) == text
