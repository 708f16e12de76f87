"""The readers of weights and of other formats that are tried: safetensors, its index, llama2.c and GGUF."""

import json
import struct
from functools import cache

from tests.support.gguf_files import gguf_bytes, llama_fields, llama_tensors

from .harness import Target
from .mutations import WHOLE, mutated_bytes, mutated_json

N_TOKENS = 277
"""The size of the vocabulary of the GGUF and llama2.c files."""

HEADER = {
    "__metadata__": {"format": "pt"}, "a.weight": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]},
    "b": {"dtype": "BF16", "shape": [8], "data_offsets": [32, 48]},
    "c": {"dtype": "I64", "shape": [], "data_offsets": [48, 56]},
}  # fmt: skip
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = {"metadata": {"total_size": 112}, "weight_map": {"a": SHARDS[0], "b": SHARDS[0], "c": SHARDS[1]}}


def _safetensors(header, n_data):
    return struct.pack("<Q", len(header)) + header + bytes(n_data)


def _make_header(random):
    header = mutated_json(random, HEADER, [HEADER])
    if random.random() < 0.15:
        return mutated_bytes(random, _safetensors(json.dumps(HEADER).encode(), 56))
    length = len(header) if random.random() < 0.95 else random.choice(WHOLE) % 2**64
    return struct.pack("<Q", length) + header + bytes(random.choice([56, 56, 56, 56, 55, 57, 0]))


def _read_header(case, folder):
    from tinystory.checkpoint.safetensors_header import read_tensors

    (folder / "model.safetensors").write_bytes(case)
    for entry in read_tensors(folder).values():
        assert 8 <= entry.start <= entry.end <= len(case)
        assert entry.n_elements >= 0


def _make_index(random):
    return mutated_json(random, INDEX, [INDEX])


def _read_index(case, folder):
    from tinystory.checkpoint.safetensors_header import read_tensors, weight_files

    for shard, names in zip(SHARDS, ("ab", "c"), strict=True):
        header = {
            name: {"dtype": "F32", "shape": [4], "data_offsets": [16 * n, 16 * n + 16]} for n, name in enumerate(names)
        }
        (folder / shard).write_bytes(_safetensors(json.dumps(header).encode(), 16 * len(names)))
    (folder / "model.safetensors.index.json").write_bytes(case)
    assert set(weight_files(folder)) <= set(SHARDS) or read_tensors(folder)
    assert set(read_tensors(folder)) <= set("abc")


# --- formats of other programs ---


def _numbers(random, raw, offsets):
    """Return bytes in which one or two of the 32-bit numbers at `offsets` have other values."""
    raw = bytearray(raw)
    for offset in random.sample(offsets, min(len(offsets), random.choice([1, 1, 2]))):
        (old,) = struct.unpack_from("<i", raw, offset)
        value = random.choice([old + 1, old - 1, -old, old * 2, *WHOLE])
        struct.pack_into("<I", raw, offset, value % 2**32)
    return bytes(raw)


@cache
def _llama2c():
    """Return a sound model, a sound tokenizer, and the places of the numbers in the tokenizer."""
    dim, hidden, n_layer, n_head, n_kv_head, vocab, length = 8, 12, 2, 2, 1, N_TOKENS, 16
    d_kv = dim * n_kv_head // n_head
    n_values = vocab * dim + n_layer * dim * (2 + 2 * dim + 2 * d_kv + 3 * hidden) + dim + length * dim // n_head
    model = struct.pack("<7i", dim, hidden, n_layer, n_head, n_kv_head, vocab, length) + bytes(4 * n_values)
    texts = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(f"<0x{byte:02X}>".encode() for byte in range(256))]
    texts += [text.encode() for text in (" a", "ab", "abc", "bc", " ab", " ", "a", "b", "c", "é", "ca", "aaa")]
    texts += [b"x%d" % n for n in range(N_TOKENS - len(texts))]
    tokenizer, places = struct.pack("<i", 8), [0]
    for n, text in enumerate(texts):
        places += [len(tokenizer), len(tokenizer) + 4]
        tokenizer += struct.pack("<fi", -float(n), len(text)) + text
    return model, tokenizer, places


def _make_llama2c(random):
    model, tokenizer, places = _llama2c()
    if random.random() < 0.3:
        header, values = model[:28], model[28:]
        changed = _numbers(random, header, range(0, 28, 4)) if random.random() < 0.7 else mutated_bytes(random, header)
        return b"model " + changed + values
    if random.random() < 0.6:
        return b"tokenizer " + _numbers(random, tokenizer, random.choice([places[:1], places[1::2], places]))
    return b"tokenizer " + mutated_bytes(random, tokenizer)


def _read_llama2c(case, folder):
    """Import a model or a tokenizer of llama2.c; of the weights, only what is in the header is read."""
    from tinystory.checkpoint.formats.llama2c import _read_config, tokenizer_json

    kind, content = case.split(b" ", 1)
    path = folder / "file.bin"
    path.write_bytes(content)
    if kind == b"model":
        _read_config(path)
    else:
        json.loads(tokenizer_json(path, N_TOKENS))


@cache
def _gguf():
    """Return the metadata and the tensors of a sound file, and the whole file."""
    fields, tensors = llama_fields(N_TOKENS), llama_tensors(N_TOKENS)
    return fields, tensors, gguf_bytes(fields, tensors)


def _make_gguf(random):
    fields, tensors, whole = _gguf()
    kind = random.choice(["fields"] * 6 + ["numbers", "bytes"])
    head = len(gguf_bytes(fields, {})) + 800  # the header and some of the tensors' names
    if kind == "numbers":
        return _numbers(random, whole, range(4, 600))
    if kind == "bytes":
        return mutated_bytes(random, whole[:head]) + whole[head:]
    changed = dict(fields)
    for name in random.sample(sorted(fields), random.choice([1, 1, 2, 3])):
        if random.random() < 0.2:
            del changed[name]
        else:
            changed[name] = _other_field(random, fields[name])
    return gguf_bytes(changed, tensors)


def _other_field(random, old):
    values = [0, 1, 2, 7, 2**31 - 1, 2**32 - 1, -0.0, 0.5, float("nan"), float("inf"), "", "gpt2", "llama", "é" * 99]
    if isinstance(old, list) and random.random() < 0.8:
        items, n = list(old), random.randrange(len(old))
        change = random.choice(["item", "item", "cut", "repeat"])
        if change == "item":
            texts = ["", "▁", "a" * 9_000, "\0", "<0x41>", old[0]]
            alike = {str: texts, float: [0.0, float("nan"), float("-inf"), 1e38]}
            items[n] = random.choice(alike.get(type(old[0]), [0, 1, 2, 3, 6, -1, 99, 2**31 - 1]))
        else:
            items = items[:n] if change == "cut" else items[:n] * 2
        return items or [0]
    return random.choice([old + 1, old * 2, *values] if isinstance(old, int | float) else values)


def _read_gguf(case, folder):
    """Check a GGUF file as far as `tinystory import` does before it reads the weights."""
    from tinystory.checkpoint.formats.gguf import read_gguf

    path = folder / "model.gguf"
    path.write_bytes(case)
    read_gguf(path)


TARGETS = (
    Target("safetensors", _make_header, _read_header),
    Target("index", _make_index, _read_index),
    Target("llama2c", _make_llama2c, _read_llama2c),
    Target("gguf", _make_gguf, _read_gguf),
)
