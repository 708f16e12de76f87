"""Damaged and hostile GGUF files: each is refused in one line, at once, and without much memory."""

import os
import random
import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from gguf_files import SPM_TOKENS, gguf_bytes, llama_fields, llama_tensors, quantised, text, typed

from tinystory.checkpoint.formats.gguf import import_gguf, read_gguf
from tinystory.checkpoint.formats.gguf_header import is_gguf
from tinystory.errors import CheckpointError, TinystoryError

N = len(SPM_TOKENS)
FIELDS, TENSORS = llama_fields(N), llama_tensors(N)
GOOD = gguf_bytes(FIELDS, TENSORS)
HUGE = 2**63


def head(n_tensors, n_fields, rest=b"", version=3):
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_fields) + rest


def without(key):
    return gguf_bytes({k: v for k, v in FIELDS.items() if k != key}, TENSORS)


def with_field(key, value):
    return gguf_bytes(FIELDS | {key: value}, TENSORS)


def with_tensor(name, tensor):
    return gguf_bytes(FIELDS, TENSORS | {name: tensor})


def raw_tensor(name=b"t", n_dimensions=1, dimensions=(1,), kind=0, offset=0):
    return text(name) + struct.pack(f"<I{len(dimensions)}QIQ", n_dimensions, *dimensions, kind, offset)


def raw_array(kind, count, content=b""):
    return text("a") + struct.pack("<IIQ", 9, kind, count) + content


ONE = np.ones(1, "<f4")
BAD = {
    "empty": (b"", "no GGUF file"),
    "text": (b"Once upon a time there was a file that was no model.", "no GGUF file"),
    "cut after the magic": (b"GGUF", "damaged"),
    "version 1": (head(0, 0, version=1), "version 1"),
    "version 4": (head(0, 0, version=4), "version 4"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "endless fields": (head(0, HUGE), "metadata fields"),
    "endless tensors": (head(HUGE, 0), "tensors"),
    "fields that are not there": (head(0, 9000), "damaged"),
    "endless name": (head(0, 1, struct.pack("<Q", HUGE)), "damaged"),
    "endless text": (head(0, 1, text("a") + struct.pack("<IQ", 8, HUGE)), "damaged"),
    "endless array": (head(0, 1, raw_array(6, HUGE)), "damaged"),
    "endless array of texts": (head(0, 1, raw_array(8, HUGE)), "damaged"),
    "array of arrays": (head(0, 1, raw_array(9, 1, bytes(20))), "array of the unknown type 9"),
    "unknown value type": (head(0, 1, text("a") + struct.pack("<I", 77)), "unknown type 77"),
    "odd truth": (head(0, 1, text("a") + struct.pack("<IB", 7, 2)), "0 or 1"),
    "name not UTF-8": (head(0, 1, text(b"\xff") + typed(1)), "UTF-8"),
    "field twice": (head(0, 2, (text("a") + typed(1)) * 2), "twice"),
    "odd alignment": (gguf_bytes({"general.alignment": 24}, {}), "power of two"),
    "no alignment": (gguf_bytes({"general.alignment": 0}, {}), "power of two"),
    "text as alignment": (gguf_bytes({"general.alignment": "x"}, {}), "power of two"),
    "no dimensions": (head(1, 0, raw_tensor(n_dimensions=0, dimensions=())), "dimensions"),
    "many dimensions": (head(1, 0, raw_tensor(n_dimensions=2**31)), "dimensions"),
    "empty dimension": (head(1, 0, raw_tensor(dimensions=(0,))), "shape"),
    "endless dimension": (head(1, 0, raw_tensor(dimensions=(HUGE,))), "shape"),
    "overflowing shape": (head(1, 0, raw_tensor(n_dimensions=4, dimensions=(2**6,) * 4)), "lies at"),
    "offset outside": (head(1, 0, raw_tensor(offset=2**40)), "lies at"),
    "offset that overflows": (head(1, 0, raw_tensor(offset=2**64 - 32)), "lies at"),
    "offset not aligned": (head(1, 0, raw_tensor(offset=4) + bytes(100)), "lies at"),
    "tensors overlap": (head(2, 0, raw_tensor() + raw_tensor(b"u") + bytes(100)), "overlap"),
    "tensor twice": (head(2, 0, raw_tensor() + raw_tensor(offset=32) + bytes(100)), "twice"),
    "rare storage": (head(1, 0, raw_tensor(dimensions=(256,), kind=16) + bytes(999)), "IQ2_XXS"),
    "unknown storage": (head(1, 0, raw_tensor(kind=99) + bytes(100)), "type 99"),
    "broken block": (head(1, 0, raw_tensor(dimensions=(33,), kind=8) + bytes(100)), "shape"),
    "cut in the weights": (GOOD[:-33], "lies at"),
    "other architecture": (with_field("general.architecture", "mamba"), "'mamba'"),
    "no architecture": (without("general.architecture"), "None"),
    "architecture is a number": (with_field("general.architecture", 3), "architecture 3"),
    "one part of many": (with_field("split.count", 3), "join the parts"),
    "no layers": (with_field("llama.block_count", 0), "block_count is 0"),
    "endless layers": (with_field("llama.block_count", 2**32 - 1), "block_count"),
    "more layers than tensors": (with_field("llama.block_count", 2), "blk.1.attn_norm.weight"),
    "fewer layers than tensors": (gguf_bytes(FIELDS, llama_tensors(N, n_layer=2)), "unknown"),
    "no context": (without("llama.context_length"), "context_length is missing"),
    "heads per layer": (with_field("llama.attention.head_count", [2, 2]), "head_count"),
    "no norm": (without("llama.attention.layer_norm_rms_epsilon"), "epsilon is missing"),
    "norm not finite": (with_field("llama.attention.layer_norm_rms_epsilon", float("nan")), "epsilon"),
    "heads do not divide": (with_field("llama.attention.head_count", 3), "has the shape"),
    "odd head": (with_field("llama.attention.key_length", 3), "3"),
    "experts": (with_field("llama.expert_count", 8), "mixture"),
    "not causal": (with_field("llama.attention.causal", False), "causal"),
    "partial rotation": (with_field("llama.rope.dimension_count", 2), "dimension_count"),
    "odd scale": (with_field("llama.attention.scale", 0.25), "attention.scale"),
    "yarn": (with_field("llama.rope.scaling.type", "yarn"), "'yarn'"),
    "shrunk positions": (gguf_bytes(FIELDS | {"llama.rope.scaling.factor": 0.5}, TENSORS), "stretched by"),
    "odd factors": (with_tensor("rope_freqs.weight", np.array([1, 7], "<f4")), "as Llama 3 does"),
    "factors not finite": (with_tensor("rope_freqs.weight", np.array([1, np.nan], "<f4")), "Llama 3 cannot have"),
    "factors of 1": (with_tensor("rope_freqs.weight", np.ones(2, "<f4")), "Llama 3 cannot have"),
    "negative base": (with_field("llama.rope.freq_base", -1.0), "freq_base"),
    "factors with a base of 1": (
        gguf_bytes(FIELDS | {"llama.rope.freq_base": 1.0}, TENSORS | {"rope_freqs.weight": np.array([2, 7], "<f4")}),
        "as Llama 3 does",
    ),
    "too many factors": (with_tensor("rope_freqs.weight", np.ones(9, "<f4")), "row of 2"),
    "wrong shape": (with_tensor("output_norm.weight", np.ones(9, "<f4")), "output_norm.weight has the shape (9,)"),
    "unknown tensor": (with_tensor("blk.0.ffn_gate_exps.weight", ONE), "'blk.0.ffn_gate_exps.weight' is unknown"),
    "no embedding": (gguf_bytes(FIELDS, {"t": ONE}), "token_embd.weight"),
    "flat embedding": (with_tensor("token_embd.weight", ONE), "token_embd.weight"),
    "other vocabulary": (with_field("tokenizer.ggml.tokens", SPM_TOKENS[:-1]), "tokens"),
    "weights not finite": (with_tensor("output_norm.weight", np.full(8, np.inf, "<f4")), "not finite"),
    "provenance is no JSON": (with_field("tinystory.provenance", "{"), "JSON"),
}


def refused(path, out, call=import_gguf):
    with pytest.raises(TinystoryError) as caught:
        call(path, out)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert not out.exists()
    return str(caught.value)


@pytest.mark.parametrize("case", BAD)
def test_damaged_file_is_refused_in_one_line(tmp_path, case):
    content, fragment = BAD[case]
    (tmp_path / "m.gguf").write_bytes(content)
    assert fragment in refused(tmp_path / "m.gguf", tmp_path / "out")


def test_good_file_is_good(tmp_path):
    (tmp_path / "m.gguf").write_bytes(GOOD)
    import_gguf(tmp_path / "m.gguf", tmp_path / "out")


def test_what_is_no_file_is_refused_and_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "none", Path("/dev/zero")):
        assert not is_gguf(path)
        refused(path, tmp_path / "out")


def test_a_gguf_file_is_known_by_its_first_bytes(tmp_path):
    for content, expected in ((GOOD, True), (b"GGUF", True), (b"GGU", False), (b"\0\1\0\0" * 9, False)):
        (tmp_path / "m.bin").write_bytes(content)
        assert is_gguf(tmp_path / "m.bin") is expected


def test_broken_scales_are_refused(tmp_path):
    pytest.importorskip("gguf", reason="Q8_0 is read by the package gguf")
    fields, tensors = llama_fields(N, d_model=32), llama_tensors(N, d_model=32)
    number, shape, raw = quantised(8, 32, 34, (0,), (N, 32))
    tensors["token_embd.weight"] = (number, shape, b"\xff\xff" + raw[2:])  # not a number
    (tmp_path / "m.gguf").write_bytes(gguf_bytes(fields, tensors))
    assert "not finite" in refused(tmp_path / "m.gguf", tmp_path / "out")


def test_little_memory_is_taken(tmp_path):
    """A hole of 40 GB costs nothing on the disk, and a claim in the header costs nothing in memory."""
    contents = {
        "hole": GOOD,
        "array": head(0, 1, raw_array(6, 2**33)),
        "texts": head(0, 1, raw_array(8, 2**32)),
        "name": head(0, 1, struct.pack("<Q", 2**34)),
        "tensor": head(1, 0, raw_tensor(b"token_embd.weight", 2, (2**16, 2**17), 8)),
    }
    for name, content in contents.items():
        path = tmp_path / name
        path.write_bytes(content)
        os.truncate(path, 40 * 2**30)
        tracemalloc.start()
        try:
            if name == "hole":  # bytes behind the tensors are nobody's, as in llama.cpp
                read_gguf(path)
            else:
                refused(path, tmp_path / "out")
            assert tracemalloc.get_traced_memory()[1] < 200 * 2**20
        finally:
            tracemalloc.stop()


def tried(path, content):
    """Import a file that may be damaged; anything but a model or one line of refusal fails the test."""
    path.write_bytes(content)
    begin = time.process_time()
    message = ""
    try:
        import_gguf(path, path.with_name("out"))
    except CheckpointError as error:
        message = str(error)
    assert time.process_time() - begin < 5
    assert "\n" not in message
    return "refused" if message else "read"


def test_every_truncation_is_refused(tmp_path):
    data = sum(value.nbytes + -value.nbytes % 32 for value in TENSORS.values())
    n_header = len(GOOD) - data
    cuts = [*range(0, 400), *range(400, n_header, 61), *range(n_header, len(GOOD) - 32, 997)]
    assert {tried(tmp_path / "m.gguf", GOOD[:cut]) for cut in cuts} == {"refused"}


@pytest.mark.slow
def test_mutations_are_read_or_refused(tmp_path):
    """Bytes, lengths and counts of the header are overwritten, one to three at a time."""
    rng = random.Random(7)
    data = sum(value.nbytes + -value.nbytes % 32 for value in TENSORS.values())
    n_header = len(GOOD) - data
    outcomes = []
    for _ in range(600):
        content = bytearray(GOOD)
        for _ in range(rng.randint(1, 3)):
            kind = rng.choice(["byte", "u32", "u64", "bit", "insert", "delete"])
            place = rng.randrange(4, rng.choice([500, n_header - 8]))
            if kind == "byte":
                content[place] = rng.randrange(256)
            elif kind == "bit":
                content[place] ^= 1 << rng.randrange(8)
            elif kind == "u32":
                struct.pack_into("<I", content, place, rng.choice([0, 1, 2**31, 2**32 - 1, rng.getrandbits(32)]))
            elif kind == "u64":
                struct.pack_into("<Q", content, place, rng.choice([0, 1, 2**63, 2**64 - 1, rng.getrandbits(40)]))
            elif kind == "insert":
                content[place:place] = rng.randbytes(rng.randint(1, 9))
            else:
                del content[place : place + rng.randint(1, 9)]
        outcomes.append(tried(tmp_path / "m.gguf", bytes(content)))
    assert outcomes.count("refused") > 300
    assert outcomes.count("read") > 10


def test_numbers_at_every_length_are_read_or_refused(tmp_path):
    """The count of tensors, the count of fields and the first lengths become each extreme."""
    for place in (8, 16, 24, *range(28, 160, 4)):
        for number in (0, 1, 2**31 - 1, 2**32, 2**63 - 1, 2**64 - 1):
            content = bytearray(GOOD)
            struct.pack_into("<Q", content, place, number)
            tried(tmp_path / "m.gguf", bytes(content))
