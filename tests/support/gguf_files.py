"""GGUF files written by hand, as the format describes them and without the code under test."""

import math
import struct

import numpy as np

SPM_WORDS = [" a", "ab", "abc", "bc", " ab", " ", "a", "b", "c", "é", "ca", "aaa", " the", "th", "e", "t", "h", " t"]
SPM_TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *(w.replace(" ", "▁") for w in SPM_WORDS)]
SPM_TYPES = [2, 3, 3, *[6] * 256, *[1] * len(SPM_WORDS)]
SPM_SCORES = [0.0] * 259 + [-7.0, -8.0, -0.5, -3.0, -1.0, -9.0, -10, -11, -12, -20, -21, -22, -4, -5, -13, -14, -15, -6]

U32, F32, BOOL, TEXT, ARRAY = 4, 6, 7, 8, 9


def text(value):
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def typed(value):
    """A value with its type in front."""
    if isinstance(value, bool):
        return struct.pack("<IB", BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", U32, value)
    if isinstance(value, float):
        return struct.pack("<If", F32, value)
    if isinstance(value, str):
        return struct.pack("<I", TEXT) + text(value)
    if value and isinstance(value[0], str):
        return struct.pack("<IIQ", ARRAY, TEXT, len(value)) + b"".join(map(text, value))
    kind, letter = (F32, "f") if any(isinstance(item, float) for item in value) else (5, "i")
    return struct.pack("<IIQ", ARRAY, kind, len(value)) + struct.pack(f"<{len(value)}{letter}", *value)


def gguf_bytes(fields, tensors, version=3, alignment=32):
    """A file; a tensor is name -> float array (F32), or name -> (type number, shape, bytes)."""
    head = [b"GGUF", struct.pack("<IQQ", version, len(tensors), len(fields))]
    head += [text(key) + typed(value) for key, value in fields.items()]
    data, offset = [], 0
    for name, tensor in tensors.items():
        number, shape, raw = (
            tensor if isinstance(tensor, tuple) else (0, tensor.shape, np.asarray(tensor, "<f4").tobytes())
        )
        head.append(text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1]))
        head.append(struct.pack("<IQ", number, offset))
        data.append(raw + bytes(-len(raw) % alignment))
        offset += len(data[-1])
    header = b"".join(head)
    return header + bytes(-len(header) % alignment) + b"".join(data)


def llama_fields(vocab_size, d_model=8, n_head=2, n_kv_head=1, d_ff=12, n_layer=1, **other):
    """The metadata of a llama with a SentencePiece tokenizer."""
    return {
        "general.architecture": "llama",
        "llama.context_length": 32,
        "llama.embedding_length": d_model,
        "llama.block_count": n_layer,
        "llama.feed_forward_length": d_ff,
        "llama.attention.head_count": n_head,
        "llama.attention.head_count_kv": n_kv_head,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": (SPM_TOKENS + [f"[PAD{i}]" for i in range(vocab_size)])[:vocab_size],
        "tokenizer.ggml.token_type": (SPM_TYPES + [5] * vocab_size)[:vocab_size],
        "tokenizer.ggml.scores": (SPM_SCORES + [-99.0] * vocab_size)[:vocab_size],
    } | other


def llama_tensors(vocab_size, d_model=8, n_head=2, n_kv_head=1, d_ff=12, n_layer=1):
    """Random weights for `llama_fields`; the head is tied."""
    random = np.random.default_rng(0)
    d_kv = d_model // n_head * n_kv_head
    shapes = {"token_embd.weight": (vocab_size, d_model), "output_norm.weight": (d_model,)}
    for n in range(n_layer):
        shapes |= {
            f"blk.{n}.attn_norm.weight": (d_model,),
            f"blk.{n}.attn_q.weight": (d_model, d_model),
            f"blk.{n}.attn_k.weight": (d_kv, d_model),
            f"blk.{n}.attn_v.weight": (d_kv, d_model),
            f"blk.{n}.attn_output.weight": (d_model, d_model),
            f"blk.{n}.ffn_norm.weight": (d_model,),
            f"blk.{n}.ffn_gate.weight": (d_ff, d_model),
            f"blk.{n}.ffn_up.weight": (d_ff, d_model),
            f"blk.{n}.ffn_down.weight": (d_model, d_ff),
        }
    return {name: random.standard_normal(shape).astype("<f4") for name, shape in shapes.items()}


def quantised(number, block, n_bytes, scales, shape, seed=0):
    """Random blocks of a storage type; `scales`: where its float16 scales lie, which are made finite."""
    n_blocks = math.prod(shape) // block
    raw = np.random.default_rng(seed).integers(0, 256, (n_blocks, n_bytes), np.uint8)
    values = np.random.default_rng(seed + 1).uniform(-0.02, 0.02, (n_blocks, len(scales))).astype("<f2")
    for column, place in enumerate(scales):
        raw[:, place : place + 2] = values[:, column : column + 1].view(np.uint8).reshape(n_blocks, 2)
    return number, shape, raw.tobytes()
