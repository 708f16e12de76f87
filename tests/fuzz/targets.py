"""The readers of files that are tried: each makes a case from sound files, and reads it."""

import atexit
import base64
import json
import tempfile
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

from . import binary_targets, text_targets
from .checkpoint_seeds import write_others, write_own
from .harness import Target
from .mutations import TEXTS, WHOLE, mutated_bytes, mutated_json, of_own_kind
from .tokenizer_seeds import STORY, charsmap, seeds

PROMPTS = ("", STORY, "Once  upon\na time… ﬁé 中🙂 \0 <s> <think>cat's 123!", "a" * 50 + "b", " " * 30, "ab" * 500)


INNER = {
    "normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "post_processor": "processors",
    "decoder": "decoders",
}  # fmt: skip

PADDING = {"direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "a"}
TRUNCATION = {"strategy": "LongestFirst", "direction": "Right"}


@cache
def _tokenizer_seeds():
    return seeds()


@cache
def _parts(name):
    """Return every part that a seed has as normalizer, or as another component, without the sequences around them."""
    waiting, parts = [seed[name] for seed in _tokenizer_seeds()], []
    while waiting:
        part = waiting.pop()
        if part and part["type"] == "Sequence":
            waiting += part[INNER[name]]
        elif part:
            parts.append(part)
    return parts


def _make_tokenizer(random):
    documents = _tokenizer_seeds()
    document = dict(random.choice(documents))
    for name in INNER:
        if random.random() < 0.3:
            document[name] = random.choice(documents)[name]
    if random.random() < 0.1:
        document["padding"] = PADDING | {"strategy": random.choice(["BatchLongest", {"Fixed": random.choice(WHOLE)}])}
        document["truncation"] = TRUNCATION | {"max_length": random.choice(WHOLE), "stride": random.choice(WHOLE)}
    if random.random() < 0.5:
        name = random.choice(list(INNER))
        parts = [_changed_part(random, name) for _ in range(random.choice([1, 1, 2, 3, 20]))]
        n_times = min(random.choice([1, 1, 1, 5, 500]), 1_000_000 // len(json.dumps(parts)) + 1)
        document[name] = {"type": "Sequence", INNER[name]: parts * n_times}
        return json.dumps(document).encode()
    return mutated_json(random, document, documents)


def _changed_part(random, name):
    """Return a part that has its kind and its keys, and often other values."""
    part = dict(random.choice(_parts(name)))
    for key in part:
        if key != "type" and random.random() < 0.5:
            part[key] = of_own_kind(random, part[key])
    if isinstance(part.get("pattern"), dict):
        part["pattern"] = {random.choice(["String", "Regex"]): random.choice(TEXTS)}
    if "precompiled_charsmap" in part and random.random() < 0.8:
        part["precompiled_charsmap"] = base64.b64encode(mutated_bytes(random, base64.b64decode(charsmap()))).decode()
    return part


def _read_tokenizer(case, folder):
    """Load a tokenizer, encode texts, and detokenize ids in every way that a story does."""
    from tinystory.checkpoint.tokenizers import find_tokenizer
    from tinystory.errors import CheckpointError
    from tinystory.text.tokenizer import Detokenizer

    path = folder / "tokenizer.json"
    path.write_bytes(case)
    tokenizer = find_tokenizer(str(path))
    refused = None
    for text in PROMPTS:
        try:
            ids = tokenizer.encode(text)
        except CheckpointError as error:  # a chat goes on with the next line
            refused = error
            continue
        _detokenize(tokenizer, Detokenizer, ids[:200])
    _detokenize(tokenizer, Detokenizer, range(min(tokenizer.vocab_size, 60)))
    tokenizer.encode_batch(PROMPTS[:1])
    tokenizer.to_json()
    if refused:
        raise refused


def _detokenize(tokenizer, detokenizer_class, ids):
    detokenizer = detokenizer_class(tokenizer)
    streamed = "".join([detokenizer.add(token_id) for token_id in ids]) + detokenizer.finish()
    assert streamed == tokenizer.detokenize(ids)
    for token_id in ids[:20]:
        tokenizer.token_text(token_id)


# --- the JSON files of a checkpoint ---

JSON_FILES = (
    *["config.json"] * 7, "generation_config.json", "model.safetensors.index.json", "special_tokens_map.json",
    "tokenizer_config.json",
)  # fmt: skip
ADDED_KEYS = (
    "_attn_implementation", "attention_dropout", "attn_implementation", "auto_map", "chunk_size_feed_forward", "dtype",
    "architectures", "experts_per_token", "head_dim", "id2label", "is_decoder", "is_encoder_decoder", "label2id",
    "layer_types", "max_length", "num_experts", "num_hidden_layers", "num_key_value_heads", "num_labels",
    "output_attentions", "pad_token_id", "partial_rotary_factor", "problem_type", "pruned_heads",
    "quantization_config", "return_dict", "rope_parameters", "rope_scaling", "rope_theta", "sliding_window",
    "text_config", "tie_word_embeddings", "torch_dtype", "torchscript", "transformers_version", "use_cache",
    "vision_config",
)  # fmt: skip
"""Keys that transformers knows in every config.json."""

PROMPT_IDS = [0, 2, 3]


@cache
def _checkpoints(write):
    """Return the folders of sound checkpoints, which are written once."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return {path.name: path for path in write(Path(folder.name))}


@cache
def _documents(write, file):
    """Return the content of a file in each checkpoint that has it."""
    return [
        (name, json.loads((path / file).read_text()))
        for name, path in _checkpoints(write).items()
        if (path / file).exists()
    ]


def _make_checkpoint(write, random):
    """Return a case: the name of a checkpoint and of a file, and the content of the file."""
    documents = []
    while not documents:
        file = random.choice(JSON_FILES)
        documents = _documents(write, file)
    name, document = random.choice(documents)
    content = mutated_json(random, document, [other for _, other in documents], ADDED_KEYS)
    return f"{name} {file}\n".encode() + content


def _read_checkpoint(write, case, _folder):
    """Load a checkpoint in which one file has another content, and compute a few tokens."""
    names, content = case.split(b"\n", 1)
    name, file = names.decode().split()
    path = _checkpoints(write)[name] / file
    sound = path.read_bytes()
    path.write_bytes(content)
    try:
        _write_a_few_tokens(path.parent, only_own=write is write_own, with_numpy=len(content) % 2 == 0)
    finally:
        path.write_bytes(sound)


def _write_a_few_tokens(directory, *, only_own, with_numpy):
    """Load a checkpoint as `chat` does, or as `generate` does where NumPy is enough."""
    from tinystory.checkpoint import read_header
    from tinystory.session.loading import load_header, load_without_torch
    from tinystory.session.numpy_session import suffices

    header = read_header(directory)
    if header.config is None and only_own:
        return  # the target `transformers` has these
    without_torch = with_numpy and suffices(header, SimpleNamespace(stages=()), "float32", "cpu")
    loaded = load_without_torch("seed", header) if without_torch else load_header("seed", header, "float32", "cpu")
    loaded.session.prefill([PROMPT_IDS[: loaded.session.max_seq_len - 1] or PROMPT_IDS[:1]])
    if loaded.session.max_seq_len > 1:
        loaded.session.decode([4])


TARGETS = {
    target.name: target
    for target in (
        Target("tokenizer", _make_tokenizer, _read_tokenizer),
        Target("checkpoint", partial(_make_checkpoint, write_own), partial(_read_checkpoint, write_own)),
        Target("transformers", partial(_make_checkpoint, write_others), partial(_read_checkpoint, write_others)),
        *binary_targets.TARGETS,
        *text_targets.TARGETS,
    )
}
"""The readers by name. `transformers` reads what is not for our own code; importing it takes seconds."""
