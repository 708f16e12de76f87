"""Refuse damaged and malicious checkpoints in one or two lines, most of them before torch is imported."""

import json
import os
import random
import struct
import subprocess
import sys
import zipfile
from math import prod
from pathlib import Path

import pytest

from tinystory.checkpoint import load_model, read_header
from tinystory.errors import CheckpointError, TinystoryError

CONFIG = {
    "model_type": "llama",
    "vocab_size": 16,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
LAYER = "model.layers.0"
SHAPES = {
    "model.embed_tokens.weight": [16, 8],
    f"{LAYER}.input_layernorm.weight": [8],
    f"{LAYER}.mlp.down_proj.weight": [8, 12],
    f"{LAYER}.mlp.gate_proj.weight": [12, 8],
    f"{LAYER}.mlp.up_proj.weight": [12, 8],
    f"{LAYER}.post_attention_layernorm.weight": [8],
    f"{LAYER}.self_attn.k_proj.weight": [4, 8],
    f"{LAYER}.self_attn.o_proj.weight": [8, 8],
    f"{LAYER}.self_attn.q_proj.weight": [8, 8],
    f"{LAYER}.self_attn.v_proj.weight": [4, 8],
    "model.norm.weight": [8],
}
TOKENIZER = {"model": {"type": "WordLevel", "vocab": {"<s>": 0, "once": 1}}, "added_tokens": []}
ITEM_SIZE = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U8": 1}
MARKER = "remote code has run"


def header_of(shapes, dtype="F32"):
    header, position = {}, 0
    for name, shape in shapes.items():
        end = position + prod(shape) * ITEM_SIZE[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, end]}
        position = end
    return header


def write_weights(path, header, data=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    if data is None:
        data = b"\0" * max(entry["data_offsets"][1] for entry in header.values() if "data_offsets" in entry)
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)


def write_checkpoint(directory, config=CONFIG, shapes=SHAPES, dtype="F32"):
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    write_weights(directory / "model.safetensors", header_of(shapes, dtype))


# --- the cases: name -> (function that damages a checkpoint, part of the message) ---

CASES = {}


def case(fragment):
    def register(function):
        CASES[function.__name__] = (function, fragment)
        return function

    return register


def config_case(name, fragment, **changes):
    def change(directory):
        content = {key: value for key, value in (CONFIG | changes).items() if value != "absent"}
        (directory / "config.json").write_text(json.dumps(content))

    CASES[name] = (change, fragment)


def file_case(name, fragment, file, content):
    CASES[name] = (lambda directory: (directory / file).write_bytes(content), fragment)


def header_case(name, fragment, change):
    def apply(directory):
        header = header_of(SHAPES)
        change(header)
        write_weights(directory / "model.safetensors", header, b"\0" * (4 * sum(map(prod, SHAPES.values()))))

    CASES[name] = (apply, fragment)


def entry(header, name="model.norm.weight"):
    return header[name]


config_case("vocab_size absurd", "vocab_size", vocab_size=10**9)
config_case("vocab_size of 200 digits", "vocab_size", vocab_size=10**200)
config_case("width absurd", "d_model", hidden_size=2**30)
config_case("too many parameters", "billion", hidden_size=2**13, intermediate_size=2**20, num_hidden_layers=1000)
config_case("layers negative", "num_hidden_layers is -1", num_hidden_layers=-1)
config_case("layers zero", "num_hidden_layers is 0", num_hidden_layers=0)
config_case("string where int", "hidden_size is '8'", hidden_size="8")
config_case("float where int", "hidden_size is 8.0", hidden_size=8.0)
config_case("true where int", "hidden_size is True", hidden_size=True)
config_case("list where int", "vocab_size is [16]", vocab_size=[16])
config_case("width missing", "hidden_size is missing", hidden_size="absent")
config_case("width not divisible by heads", "not a multiple", num_attention_heads=3)
config_case("heads not divisible by key heads", "n_kv_head", num_attention_heads=4, num_key_value_heads=3)
config_case("odd head size", "even head size", num_attention_heads=8, num_key_value_heads=1)
config_case("no model_type", "model_type is None", model_type="absent")
config_case("model_type a number", "model_type is 7", model_type=7)
config_case("norm_eps not a number", "rms_norm_eps", rms_norm_eps=float("nan"))
config_case("norm_eps negative", "rms_norm_eps", rms_norm_eps=-1e-5)
config_case("tie a string", "tie_word_embeddings", tie_word_embeddings="yes")
config_case("rope_theta zero", "rope_theta is 0", rope_theta=0)
config_case("rope_parameters a list", "rope_parameters", rope_parameters=[1])
config_case("rope factor infinite", "factor is inf", rope_scaling={"rope_type": "linear", "factor": float("inf")})
config_case("rope factor missing", "factor is missing", rope_scaling={"type": "linear"})
config_case("width null", "hidden_size is None", hidden_size=None)
config_case("bos a fraction", "bos_token_id is 0.5", bos_token_id=0.5)
config_case("eos a string", "eos_token_id is '</s>'", eos_token_id="</s>")
config_case("gpt2 without its width", "n_embd is missing", model_type="gpt2", hidden_size="absent", vocab_size=16)
config_case("shapes of another config", "has the shape (4, 8); config.json asks for (8, 8)", num_key_value_heads=2)

file_case("config not JSON", "not valid JSON", "config.json", b"{'model_type': 'llama'}")
file_case("config empty", "not valid JSON", "config.json", b"")
file_case("config a list", "JSON list", "config.json", b"[1, 2]")
file_case("config binary", "not valid JSON", "config.json", bytes(range(256)))
file_case("config nested deeply", "nested too deeply", "config.json", b'{"a":' * 100_000)
file_case("config with a giant number", "not valid JSON", "config.json", b'{"vocab_size": ' + b"9" * 10_000 + b"}")
file_case("config of many megabytes", "bytes; at most", "config.json", b" " * (5 * 2**20))
file_case("generation_config not JSON", "not valid JSON", "generation_config.json", b"{")
file_case("generation_config eos", "eos_token_id", "generation_config.json", b'{"eos_token_id": 1.5}')
file_case("provenance not JSON", "not valid JSON", "tinystory.json", b"\xff")

file_case("weights empty", "it is cut short", "model.safetensors", b"")
file_case("weights of 7 bytes", "it is cut short", "model.safetensors", b"\x02\0\0\0\0\0\0")
file_case("header length 2**60", str(2**60), "model.safetensors", struct.pack("<Q", 2**60) + b"{}")
file_case("header length 2**64 - 1", "header of", "model.safetensors", b"\xff" * 64)
file_case("header length 0", "header of 0", "model.safetensors", b"\0" * 64)
file_case("pickle in disguise", "pickle", "model.safetensors", b"\x80\x04\x95" + b"\x10" * 50 + b".")
file_case("GGUF in disguise", "GGUF", "model.safetensors", b"GGUF\x03\0\0\0" + b"\1" * 50)
file_case("git-lfs pointer", "git lfs pull", "model.safetensors", b"version https://git-lfs.github.com/spec/v1\n")
file_case("header not JSON", "not valid JSON", "model.safetensors", struct.pack("<Q", 4) + b"{]{]")
file_case("header a list", "JSON list", "model.safetensors", struct.pack("<Q", 2) + b"[]")
file_case(
    "header nested deeply", "nested too deeply", "model.safetensors", struct.pack("<Q", 10**6) + b'{"a":' * 200_000
)
file_case("tokenizer not JSON", "not valid JSON", "tokenizer.json", b"once upon a time")
file_case("tokenizer nested deeply", "nested too deeply", "tokenizer.json", b'{"model":' + b"[" * 500_000)
file_case("tokenizer without vocabulary", "not a tokenizer", "tokenizer.json", b"{}")
file_case("tokenizer ids not whole", "whole number", "tokenizer.json", b'{"model":{"vocab":{"a":0.5}}}')
file_case("tokenizer far too long", "bytes; at most", "tokenizer.json", b" " * (3 * 2**20))
file_case("tokenizer id too large", "has the token id 16", "tokenizer.json", b'{"model":{"vocab":{"a":16}}}')
file_case(
    "tokenizer added_tokens a number", "added_tokens", "tokenizer.json", b'{"model":{"vocab":{}},"added_tokens":5}'
)
file_case("tokenizer unigram", "[token, score]", "tokenizer.json", b'{"model":{"vocab":[["a",0],7]}}')

header_case("tensor missing", "lack the tensor model.norm.weight", lambda h: h.update(x=h.pop("model.norm.weight")))
header_case("wrong shape", "has the shape (2, 4); config.json asks for (8,)", lambda h: entry(h).update(shape=[2, 4]))
header_case("unknown dtype", "dtype 'F31'", lambda h: entry(h).update(dtype="F31"))
header_case("dtype a list", "dtype ['F32']", lambda h: entry(h).update(dtype=["F32"]))
header_case("dtype too wide", "does not fill", lambda h: entry(h).update(dtype="F64"))
header_case("shape negative", "shape [-8]", lambda h: entry(h).update(shape=[-8]))
header_case("shape beyond the data", "does not fill", lambda h: entry(h).update(shape=[2**62]))
header_case("shape of a thousand sizes", "must be a list of sizes", lambda h: entry(h).update(shape=[1] * 1000))
header_case("shape a string", "must be a list of sizes", lambda h: entry(h).update(shape="8"))
header_case("offsets beyond the file", "cut short", lambda h: entry(h).update(data_offsets=[2**50, 2**50 + 32]))
header_case("offsets backwards", "cut short", lambda h: entry(h).update(data_offsets=[64, 32]))
header_case("offsets negative", "byte positions", lambda h: entry(h).update(data_offsets=[-32, 0]))
header_case("one offset", "byte positions", lambda h: entry(h).update(data_offsets=[0]))
header_case("overlap", "overlaps", lambda h: entry(h).update(data_offsets=[0, 32]))
header_case("entry not an object", "dtype None", lambda h: h.update({"model.norm.weight": 5}))


@case("more layers than config.json: the tensor 'model.layers.1.input_layernorm.weight'")
def layer_too_many(directory):
    shapes = SHAPES | {"model.layers.1.input_layernorm.weight": [8]}
    write_weights(directory / "model.safetensors", header_of(shapes))


@case("is I64; weights must be")
def weights_of_whole_numbers(directory):
    write_weights(directory / "model.safetensors", header_of(SHAPES, "I64"))


@case("leaves a hole")
def hole_between_tensors(directory):
    header = header_of(SHAPES)
    entry(header)["data_offsets"] = [offset + 4 for offset in entry(header)["data_offsets"]]
    write_weights(directory / "model.safetensors", header)


@case("bytes after the last tensor")
def bytes_after_the_data(directory):
    with (directory / "model.safetensors").open("ab") as file:
        file.write(b"PK hidden payload")


@case("stands twice")
def tensor_named_twice(directory):
    raw = json.dumps(header_of(SHAPES))
    raw = raw[:-1] + ', "model.norm.weight": ' + json.dumps(entry(header_of(SHAPES))) + "}"
    write_weights(directory / "model.safetensors", raw.encode(), b"\0" * 4000)


@case("not a safetensors file")
def header_longer_than_the_file(directory):
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", 2**40) + b"{}")


@case("not a safetensors file")
def huge_header_in_a_sparse_file(directory):
    with (directory / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 2**33))
        file.truncate(2**34)


def truncation(n_bytes):
    def cut(directory):
        path = directory / "model.safetensors"
        os.truncate(path, n_bytes if n_bytes >= 0 else path.stat().st_size + n_bytes)

    return cut


for _n_bytes, _fragment in ((3, "safetensors"), (8, "cut short"), (100, "cut short"), (-1, "cut short"), (-900, "cut")):
    CASES[f"weights cut at {_n_bytes}"] = (truncation(_n_bytes), _fragment)


@case("zip archive")
def zip_in_disguise(directory):
    with zipfile.ZipFile(directory / "model.safetensors", "w") as archive:
        archive.writestr("archive/data.pkl", "x" * 100)


@case("only pickled weights ('pytorch_model.bin')")
def only_pickled_weights(directory):
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


@case("GGUF weights only")
def only_gguf_weights(directory):
    (directory / "model.safetensors").rename(directory / "model.gguf")


@case("has no model.safetensors")
def no_weights(directory):
    (directory / "model.safetensors").unlink()


@case("has no config.json")
def no_config(directory):
    (directory / "config.json").unlink()


@case("is empty")
def empty_directory(directory):
    for path in directory.iterdir():
        path.unlink()


@case("is a file; give the directory")
def file_in_place_of_a_directory(directory):
    empty_directory(directory)
    directory.rmdir()
    directory.write_bytes(b"weights")


@case("No such file")
def missing_directory(directory):
    empty_directory(directory)
    directory.rmdir()


@case("Too many levels of symbolic links")
def loop_of_links_as_config(directory):
    (directory / "config.json").unlink()
    (directory / "config.json").symlink_to(directory / "config.json")


@case("symbolic links")
def loop_of_links_as_directory(directory):
    missing_directory(directory)
    directory.symlink_to(directory.with_name("other end"))
    directory.with_name("other end").symlink_to(directory)


@case("not a regular file")
def directory_as_weights(directory):
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors").mkdir()


@case("not a regular file")
def pipe_as_weights(directory):
    (directory / "model.safetensors").unlink()
    os.mkfifo(directory / "model.safetensors")


@case("not a regular file")
def endless_device_as_config(directory):
    (directory / "config.json").unlink()
    (directory / "config.json").symlink_to("/dev/zero")


def sharded(weight_map, shards=("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")):
    """Split the weights into two shards; update the correct index with `weight_map`."""

    def make(directory):
        (directory / "model.safetensors").unlink()
        names = list(SHAPES)
        index = {}
        for i, shard in enumerate(shards):
            part = {name: SHAPES[name] for name in (names[:5], names[5:])[i]}
            write_weights(directory / shard, header_of(part))
            index |= dict.fromkeys(part, f"model-0000{i + 1}-of-00002.safetensors")
        content = weight_map if not isinstance(weight_map, dict) else index | weight_map
        (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": content}))

    return make


CASES |= {
    "shard by a path upwards": (sharded({"x": "../../secret.safetensors"}), "plain file name"),
    "shard by an absolute path": (sharded({"x": "/etc/passwd"}), "plain file name"),
    "shard that is no string": (sharded({"x": 5}), "plain file name"),
    "shard that is a pickle": (sharded({"x": "weights.bin"}), "plain file name"),
    "shard with a line break": (sharded({"x": "a\n.safetensors"}), "plain file name"),
    "shard missing": (sharded({"x": "model-00003-of-00003.safetensors"}), "lacks the shard model-00003"),
    "shard without its tensor": (sharded({"x": "model-00001-of-00002.safetensors"}), "lacks the tensor 'x'"),
    "index a list": (sharded([1]), "no weight_map"),
    "index empty": (sharded(""), "no weight_map"),
}


@case("lies in two shards")
def tensor_in_two_shards(directory):
    sharded({})(directory)
    write_weights(directory / "model-00002-of-00002.safetensors", header_of(SHAPES))


# --- the tests ---

READ_ALL = """
import json, pathlib, resource, sys, time
if sys.platform == "linux":
    resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
from tinystory.checkpoint import read_header
results = {}
for directory in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    try:
        results[directory.name] = {"model": read_header(directory / "model").hf_config["model_type"]}
    except BaseException as error:
        results[directory.name] = {
            "error": type(error).__name__, "exit_code": getattr(error, "exit_code", None), "message": str(error)}
usage = resource.getrusage(resource.RUSAGE_SELF)
peak = 0  # KiB; not ru_maxrss, which also counts the process that started this one
status = pathlib.Path("/proc/self/status")
if status.exists():
    peak = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
heavy = sorted({"torch", "transformers", "numpy", "huggingface_hub", "tokenizers", "safetensors"} & set(sys.modules))
print(json.dumps({"results": results, "heavy": heavy, "cpu": usage.ru_utime + usage.ru_stime, "peak": peak}))
"""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """Return the message of every case, and the cost, from one new process."""
    root = tmp_path_factory.mktemp("hostile")
    for number, (change, _) in enumerate(CASES.values()):
        write_checkpoint(root / str(number) / "model")
        change(root / str(number) / "model")
    write_checkpoint(root / "sound" / "model")
    write_checkpoint(root / "remote code" / "model", CONFIG | {"auto_map": {"AutoModelForCausalLM": "evil.Model"}})
    remote = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    write_checkpoint(root / "unknown architecture" / "model", remote)
    for name in ("remote code", "unknown architecture"):
        (root / name / "model" / "evil.py").write_text(f"open({MARKER!r}, 'w')\n")
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL, str(root)],
        capture_output=True, text=True, timeout=60, cwd=root / "remote code" / "model",
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) | {"root": root}


@pytest.mark.parametrize("name", CASES)
def test_refused_in_one_line(outcome, name):
    result = outcome["results"][str(list(CASES).index(name))]
    assert result.get("error") == "CheckpointError", result
    assert result["exit_code"] == 3
    message = result["message"]
    assert CASES[name][1] in message
    assert message.count("\n") <= 1
    assert message.replace("\n", "").isprintable()
    assert len(message) < 500


def test_sound_checkpoint_is_accepted(outcome):
    assert outcome["results"]["sound"] == {"model": "llama"}


def test_code_in_a_checkpoint_never_runs(outcome):
    assert outcome["results"]["remote code"] == {"model": "llama"}
    assert outcome["results"]["unknown architecture"] == {"model": "evil"}
    assert not list(outcome["root"].rglob(MARKER))


def test_refusals_are_cheap(outcome):
    """All cases together need no heavy import, less than two CPU seconds, and little memory in one new process."""
    assert outcome["heavy"] == []
    assert outcome["cpu"] < 2
    assert outcome["peak"] < 64 * 1024, "KiB"


def test_architecture_of_others_is_left_to_transformers(tmp_path):
    write_checkpoint(tmp_path / "model", CONFIG | {"model_type": "\x1b[2J\nnew line"})
    header = read_header(tmp_path / "model")
    assert header.config is None
    with pytest.raises(CheckpointError, match="only transformers") as caught:
        load_model(header)
    assert str(caught.value).isprintable()


def test_random_damage_raises_nothing_else(tmp_path):
    """Each of 250 checkpoints, with a few random bytes changed in one file, is read or is refused properly."""
    write_checkpoint(tmp_path / "model")
    originals = {path: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    generator = random.Random(0)
    messages = []
    for _ in range(250):
        path = generator.choice(sorted(originals))
        damaged = bytearray(originals[path][: generator.choice([None, 1, 50, -1])])
        for _ in range(generator.randint(0, 3)):
            damaged[generator.randrange(min(len(damaged), 1200))] = generator.randrange(256)
        path.write_bytes(damaged)
        try:
            read_header(tmp_path / "model")
        except CheckpointError as error:
            messages.append(str(error))
        path.write_bytes(originals[path])
    assert 120 < len(messages) < 250
    assert all(message.isprintable() for message in messages)


@pytest.mark.parametrize(("dtype", "code"), [("F32", "<f"), ("F16", "<e")])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", SHAPES)
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, name, value, dtype, code):
    write_checkpoint(tmp_path / "model", dtype=dtype)
    header = read_header(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    raw = bytearray(path.read_bytes())
    struct.pack_into(code, raw, header.tensors[name].end - ITEM_SIZE[dtype], value)
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=name) as caught:
        load_model(read_header(tmp_path / "model"))
    assert "\n" not in str(caught.value)


def test_float32_weights_too_large_for_float16_are_refused(tmp_path):
    write_checkpoint(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    raw = bytearray(path.read_bytes())
    struct.pack_into("<f", raw, len(raw) - 4, 1e6)
    path.write_bytes(raw)
    header = read_header(tmp_path / "model")
    assert load_model(header).norm.weight[-1] == 1e6
    with pytest.raises(CheckpointError, match="float16"):
        load_model(header, dtype="float16")


def test_file_cut_between_header_and_load(tmp_path):
    """A process with a memory map would be killed by SIGBUS here."""
    write_checkpoint(tmp_path / "model")
    header = read_header(tmp_path / "model")
    os.truncate(tmp_path / "model" / "model.safetensors", 1500)
    with pytest.raises(CheckpointError, match="shorter"):
        load_model(header)
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="No such file"):
        load_model(header)


def test_model_larger_than_the_machine_is_refused_before_memory_is_taken(tmp_path):
    """A sparse file of 70 GB costs an attacker nothing."""
    config = CONFIG | {"vocab_size": 2_000_000, "hidden_size": 8192, "num_attention_heads": 64}
    shapes = {name: [8192 if n == 8 else 2_000_000 if n == 16 else n for n in s] for name, s in SHAPES.items()}
    for name in ("k_proj", "v_proj"):
        shapes[f"{LAYER}.self_attn.{name}.weight"] = [128, 8192]
    write_checkpoint(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    header = header_of(shapes)
    write_weights(tmp_path / "model" / "model.safetensors", header, b"")
    size = (tmp_path / "model" / "model.safetensors").stat().st_size
    os.truncate(tmp_path / "model" / "model.safetensors", size + 4 * sum(map(prod, shapes.values())))
    checked = read_header(tmp_path / "model")
    if os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") > 60e9:
        pytest.skip("this machine would hold the model")
    with pytest.raises(TinystoryError, match="this machine has"):
        load_model(checked)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "."])
def test_unreadable_file_is_refused(tmp_path, name):
    write_checkpoint(tmp_path / "model")
    (tmp_path / "model" / name).chmod(0)
    try:
        with pytest.raises(CheckpointError, match="Permission denied"):
            read_header(tmp_path / "model")
    finally:
        (tmp_path / "model" / name).chmod(0o700)
