"""What is no checkpoint here is named in one line, with what makes one of it."""

import json

import pytest

from tinystory.checkpoint import read_header
from tinystory.checkpoint.directory import locate
from tinystory.checkpoint.hub import _problem
from tinystory.errors import CheckpointError

LLAMA = {"model_type": "llama", "vocab_size": 16, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
LORA = json.dumps({"base_model_name_or_path": "meta-llama/Llama-2-7b", "peft_type": "LORA"})
CTRANSLATE2 = json.dumps({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
MLX = json.dumps(LLAMA | {"quantization": {"group_size": 64, "bits": 4}})
WITH_CONFIG = {"config.json": json.dumps(LLAMA)}
INDEX = json.dumps({"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}})

FOLDERS = {
    "LoRA": (
        {"adapter_config.json": LORA, "adapter_model.safetensors": "", "README.md": ""},
        "has a LoRA adapter ('adapter_config.json') of 'meta-llama/Llama-2-7b'; merge it into its base model with "
        "merge_and_unload of peft",
    ),
    "LoRA with a config": (
        WITH_CONFIG | {"adapter_config.json": LORA, "adapter_model.safetensors": ""},
        "has a LoRA adapter ('adapter_config.json') of 'meta-llama/Llama-2-7b'",
    ),
    "LoRA without its config": ({"adapter_model.bin": ""}, "has a LoRA adapter ('adapter_model.bin'); merge it"),
    "LoRA with a broken config": ({"adapter_config.json": "{"}, "has a LoRA adapter ('adapter_config.json'); merge it"),
    "Mistral": (
        {"consolidated.safetensors": "", "params.json": "{}", "tokenizer.model.v3": ""},
        "has weights in the own format of Mistral or Meta ('consolidated.safetensors'); take the Hugging Face version",
    ),
    "Mistral with a config": (WITH_CONFIG | {"consolidated.safetensors": ""}, "the own format of Mistral or Meta"),
    "Meta": ({"consolidated.00.pth": "", "params.json": "{}"}, "the own format of Mistral or Meta"),
    "diffusers": ({"model_index.json": "{}", "unet": None}, "has a pipeline of diffusers ('model_index.json')"),
    "ONNX": (WITH_CONFIG | {"onnx": None}, "has a model for ONNX ('onnx'); load the original model with transformers"),
    "ONNX file": ({"decoder_model.onnx": ""}, "has a model for ONNX ('decoder_model.onnx')"),
    "CTranslate2": (
        {"config.json": CTRANSLATE2, "model.bin": "", "vocabulary.json": "[]"},
        "has a model of CTranslate2 ('vocabulary.json'); load the original model with transformers",
    ),
    "MLX": ({"config.json": MLX, "model.safetensors": ""}, "is quantised by MLX; take the model that it was made from"),
    "MLX of old": (WITH_CONFIG | {"weights.npz": ""}, "has weights of MLX or NumPy ('weights.npz')"),
    "TensorFlow": (WITH_CONFIG | {"tf_model.h5": ""}, "has weights of TensorFlow ('tf_model.h5')"),
    "Flax": (WITH_CONFIG | {"flax_model.msgpack": ""}, "has weights of Flax ('flax_model.msgpack')"),
    "OpenVINO": (WITH_CONFIG | {"openvino_model.bin": ""}, "has only pickled weights"),
    "pickles": (WITH_CONFIG | {"pytorch_model.bin": ""}, "has only pickled weights ('pytorch_model.bin'), which"),
    "arguments of a trainer": (WITH_CONFIG | {"training_args.bin": ""}, "has no model.safetensors (and no"),
    "GGUF": ({"model-Q4_K_M.gguf": ""}, "GGUF weights only ('model-Q4_K_M.gguf'); import the file with"),
    "variant": (
        WITH_CONFIG | {"model.fp16.safetensors": ""},
        "has no model.safetensors, but 'model.fp16.safetensors'; if these are the weights of config.json, rename the "
        "file: mv {folder}/model.fp16.safetensors {folder}/model.safetensors",
    ),
    "one other name beside pickles": (
        WITH_CONFIG | {"weights.safetensors": "", "pytorch_model.bin": ""}, "mv {folder}/weights.safetensors",
    ),
    "two other names": (
        WITH_CONFIG | {"model.fp16.safetensors": "", "model.fp32.safetensors": ""},
        "has no model.safetensors, but 'model.fp16.safetensors', 'model.fp32.safetensors'; load the original model",
    ),
    "shards without an index": (
        WITH_CONFIG | {"model-00001-of-00002.safetensors": "", "model-00002-of-00002.safetensors": ""},
        "has the shard 'model-00001-of-00002.safetensors', but no model.safetensors.index.json",
    ),
    "index without shards": (
        WITH_CONFIG | {"model.safetensors.index.json": INDEX}, "lacks the shard model-00001-of-00002.safetensors",
    ),
    "weights without a config": ({"model.safetensors": ""}, "has no config.json, which tells the architecture"),
    "a tokenizer": ({"tokenizer.json": "{}"}, "has no config.json, so it is neither"),
}  # fmt: skip

FILES = {
    "model.gguf": (b"GGUF\3", "is a GGUF file; import it with `tinystory import {path} -o FOLDER`"),
    "model.bin": (b"GGUF\3", "is a GGUF file"),
    "stories.bin": (b"\0\1\0\0", "import it with `tinystory import` if it is of llama2.c"),
    "pytorch_model.bin": (b"PK\3\4", "is a file with pickled weights, which can run code"),
    "other.bin": (b"\x80\2}q", "pickled weights"),
    "128 wide.bin": (b"\x80\0\0\0", "if it is of llama2.c"),
    "640 wide.bin": (b"\x80\2\0\0", "if it is of llama2.c"),
    "model.pt": (b"PK\3\4", "which can run code and are never opened"),
    "model.pth": (b"", "pickled weights"),
    "model.ckpt": (b"", "pickled weights"),
    "model.onnx": (b"", "a model for ONNX"),
    "model.safetensors": (b"", "is a file of weights; give its folder, which also holds config.json: {folder}"),
    "adapter_model.safetensors": (b"", "is a LoRA adapter; merge it into its base model"),
    "story.txt": (b"Once", "is a file; give the directory that holds config.json and model.safetensors"),
}


def refusal(path):
    with pytest.raises(CheckpointError) as caught:
        read_header(locate(path))
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_code == 3
    return message


@pytest.mark.parametrize("name", FOLDERS)
def test_folder_is_named(tmp_path, name):
    files, expected = FOLDERS[name]
    for file, content in files.items():
        if content is None:
            (tmp_path / file).mkdir()
        else:
            (tmp_path / file).write_text(content)
    assert expected.format(folder=tmp_path) in refusal(tmp_path)


@pytest.mark.parametrize("inner", ["model", "snapshots/0123abcd"])
def test_a_folder_around_a_checkpoint_names_it(tmp_path, inner):
    """The folder of a model in the cache of the hub is one, and an unpacked archive often is."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / inner).mkdir(parents=True)
    assert "so it is neither" in refusal(tmp_path)
    (tmp_path / inner / "config.json").write_text("{}")
    assert refusal(tmp_path).endswith(f"has no config.json, but a folder in it has one; give {tmp_path / inner}")


@pytest.mark.parametrize("name", FILES)
def test_file_is_named(tmp_path, name):
    content, expected = FILES[name]
    (tmp_path / name).write_bytes(content)
    assert expected.format(path=tmp_path / name, folder=tmp_path) in refusal(tmp_path / name)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.gguf"], "has no model.safetensors, but GGUF weights only ('a.gguf'); import the file with"),
        (["adapter_model.safetensors"], "but a LoRA adapter ('adapter_model.safetensors'); merge it"),
        (["pytorch_model.bin"], "but only pickled weights ('pytorch_model.bin'); look for a safetensors version"),
        (["README.md"], "but formats that tinystory does not open; look for a safetensors version"),
        (["model.safetensors"], None),
    ],
)
def test_hub_model_without_weights_is_named(names, expected):
    problem = _problem(names, "model", "org/name", "")
    assert expected in problem if expected else problem is None
