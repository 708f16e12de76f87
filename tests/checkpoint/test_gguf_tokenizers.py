"""Tokenizers of GGUF files: words, merges, SentencePiece against a plain port of llama.cpp's, special tokens."""

import itertools
import json

import numpy as np
import pytest
import regex
from gguf_files import SPM_SCORES, SPM_TOKENS, SPM_TYPES, gguf_bytes, llama_fields, llama_tensors
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer

from tinystory.checkpoint import load_model, read_header
from tinystory.checkpoint.formats.gguf import import_gguf, read_gguf
from tinystory.checkpoint.formats.gguf_tokenizer import read_tokenizer
from tinystory.checkpoint.formats.llama2c import import_llama2c
from tinystory.checkpoint.formats.llama2c_export import export_llama2c
from tinystory.checkpoint.tokenizers import load_tokenizer
from tinystory.errors import CheckpointError
from tinystory.text.tokenizer import Tokenizer

N = len(SPM_TOKENS)
ODD = "I'll DON'T  say 12345 to   Zoë's \"friends\"…\n\n\tnaïve 🦊  x=1+2 $5.00 ½ ٣٤ ß'S 你好 end. \r\n "
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
LLAMA3 = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA_CPP_WORDS = {  # as src/llama-vocab.cpp has them
    "gpt-2": [GPT2],
    "llama-bpe": [LLAMA3],
    "qwen2": [LLAMA3.replace("{1,3}", "")],
    "smollm": [r"\p{N}", GPT2],
    "default": [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
}
SPM = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": SPM_TOKENS,
    "tokenizer.ggml.token_type": SPM_TYPES,
    "tokenizer.ggml.scores": SPM_SCORES,
}


def read(fields, vocab_size=None):
    """Through a file: the tokenizer that a llama with these fields would have."""
    arrays = {
        key: np.array(value) if isinstance(value, list) and value and not isinstance(value[0], str) else value
        for key, value in fields.items()
    }
    return read_tokenizer(arrays, vocab_size or len(fields["tokenizer.ggml.tokens"]))


def bpe_fields(tokenizer, **other):
    document = json.loads(tokenizer.to_json())
    tokens = sorted(document["model"]["vocab"], key=document["model"]["vocab"].get)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] + [1] * (len(tokens) - 1),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in document["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
    } | {f"tokenizer.ggml.{key}": value for key, value in other.items()}


# --- byte-level BPE ---


def words_of(text, expressions):
    """Split as llama.cpp does: a match is a word, and so is what lies between two matches."""
    words = [text]
    for expression in expressions:
        parts = []
        for word in words:
            end = 0
            for match in regex.finditer(expression, word):
                parts += [word[end : match.start()], match[0]]
                end = match.end()
            parts.append(word[end:])
        words = [part for part in parts if part]
    return words


@pytest.mark.parametrize("pre", LLAMA_CPP_WORDS)
@pytest.mark.parametrize("text", [ODD, "a  b\n c", "  1234567", "'t's", "don't\n\n\n  x  "])
def test_words_are_those_of_llama_cpp(tokenizer, pre, text):
    fast = FastTokenizer.from_str(read(bpe_fields(tokenizer, pre=pre)).json)
    spans = [span for _, span in fast.pre_tokenizer.pre_tokenize_str(text)]
    assert [text[start:end] for start, end in spans] == words_of(text, LLAMA_CPP_WORDS[pre])


def test_stories_encode_as_before(tokenizer, stories):
    result = read(bpe_fields(tokenizer))
    fast = FastTokenizer.from_str(result.json)
    for text in [*stories[:5], ODD]:
        assert fast.encode(text, add_special_tokens=False).ids == tokenizer.encode(text, bos=False)
        assert fast.encode(text).ids == [0, *tokenizer.encode(text, bos=False)]
        assert fast.decode(fast.encode(text).ids) == text
    assert (result.bos_id, result.eos_ids) == (0, {0})


def test_a_word_that_is_a_token_stays_whole_in_llama_3(tokenizer):
    """Without merges, only ignore_merges makes one token of a word."""
    ids = {}
    for pre in ("gpt-2", "llama-bpe"):
        fast = FastTokenizer.from_str(read(bpe_fields(tokenizer, pre=pre, merges=[])).json)
        ids[pre] = fast.encode(" the", add_special_tokens=False).ids
    assert (len(ids["gpt-2"]), len(ids["llama-bpe"])) == (4, 1)


def test_first_of_two_equal_merges_counts(tokenizer):
    fields = bpe_fields(tokenizer)
    merges = fields["tokenizer.ggml.merges"]
    again = bpe_fields(tokenizer, merges=[*merges, merges[0]])
    assert read(again).json == read(fields).json


def test_pre_is_missing(tokenizer):
    fields = bpe_fields(tokenizer)
    del fields["tokenizer.ggml.pre"]
    with pytest.raises(CheckpointError, match=r"splits text into words as None .* gpt-2"):
        read(fields)
    assert read(fields | {"general.architecture": "gpt2"}).json == read(bpe_fields(tokenizer)).json


def test_special_tokens(tokenizer):
    tokens = bpe_fields(tokenizer)["tokenizer.ggml.tokens"]
    tokens = [*tokens[:-4], "<|im_end|>", "[gap]", "Zoë!", "[PAD]"]
    types = [3] + [1] * (len(tokens) - 5) + [3, 5, 4, 5]
    merges = [m for m in bpe_fields(tokenizer)["tokenizer.ggml.merges"] if m.replace(" ", "") in tokens]
    result = read(bpe_fields(tokenizer, tokens=tokens, token_type=types, merges=merges, eot_token_id=5))
    assert result.eos_ids == {0, 5, len(tokens) - 4}  # what the file names, and a control token of that name
    back = Tokenizer(FastTokenizer.from_str(result.json), result.bos_id, result.eos_ids)
    n = len(tokens)
    assert back.vocab_size == n - 1  # the padding is gone, the gap stays
    ids = back.encode("a Zoë! b")
    assert n - 2 in ids
    assert back.detokenize([*ids, n - 4, n - 3]) == "a Zoë! b"  # control and unused tokens have no text


def test_add_bos_token(tokenizer):
    result = read(bpe_fields(tokenizer, add_bos_token=False))
    assert result.bos_id is None
    assert FastTokenizer.from_str(result.json).encode("the").ids == tokenizer.encode("the", bos=False)
    assert read(bpe_fields(tokenizer, add_bos_token=True)).bos_id == 0
    with pytest.raises(CheckpointError, match="add_bos_token is 1; it must be true or false"):
        read(bpe_fields(tokenizer, add_bos_token=1))


@pytest.mark.parametrize(
    ("pre", "begins"), [("gpt-2", False), ("qwen2", False), ("smollm", False), ("llama-bpe", True)]
)
def test_a_byte_level_file_that_does_not_say_it_has_bos_as_in_llama_cpp(tokenizer, pre, begins):
    fields = bpe_fields(tokenizer, pre=pre)
    del fields["tokenizer.ggml.add_bos_token"]
    assert read(fields).bos_id == (0 if begins else None)


# --- SentencePiece ---


def spm_encode(text, *, prefix=True):
    """Encode as llama.cpp's `llm_tokenizer_spm` does, without BOS."""
    lookup = {token: i for i, token in enumerate(SPM_TOKENS) if SPM_TYPES[i] == 1}
    if not text:
        return []
    symbols = list((" " * prefix + text).replace(" ", "▁"))
    while True:
        pairs = [a + b for a, b in itertools.pairwise(symbols)]
        scored = [(-SPM_SCORES[lookup[pair]], i) for i, pair in enumerate(pairs) if pair in lookup]
        if not scored:
            break
        _, i = min(scored)
        symbols[i : i + 2] = [pairs[i]]
    ids = []
    for symbol in symbols:
        ids += [lookup[symbol]] if symbol in lookup else [3 + byte for byte in symbol.encode()]
    return ids


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="abcteh é\n🦊", max_size=30), st.booleans())
@example(" abc", True)
@example(" the", False)
def test_sentence_piece_encodes_as_in_llama_cpp(text, prefix):
    fast = FastTokenizer.from_str(read(SPM | {"tokenizer.ggml.add_space_prefix": prefix}).json)
    ids = fast.encode(text, add_special_tokens=False).ids
    assert ids == spm_encode(text, prefix=prefix)
    assert fast.decode(ids) == text
    assert fast.encode(text).ids == [1, *ids]


def test_sentence_piece_has_ids_of_its_own():
    result = read(SPM)
    assert (result.bos_id, result.eos_ids) == (1, {2})
    other = read(SPM | {"tokenizer.ggml.bos_token_id": 2, "tokenizer.ggml.eos_token_id": 1})
    assert (other.bos_id, other.eos_ids) == (2, {1})


def test_sentence_piece_model_becomes_a_checkpoint_and_a_llama2c_file(tmp_path):
    (tmp_path / "m.gguf").write_bytes(gguf_bytes(llama_fields(N, n_layer=2), llama_tensors(N, n_layer=2)))
    import_gguf(tmp_path / "m.gguf", tmp_path / "first")
    tokenizer_path = export_llama2c(tmp_path / "first", tmp_path / "m.bin")
    assert tokenizer_path == tmp_path / "m.tokenizer.bin"
    import_llama2c(tmp_path / "m.bin", tokenizer_path, tmp_path / "second")
    first, second = read_header(tmp_path / "first"), read_header(tmp_path / "second")
    assert first.config == second.config
    old, new = load_model(first).state_dict(), load_model(second).state_dict()
    assert all((old[name] == new[name]).all() for name in old)
    for text in ("the cat é 🦊", " abc abcab", "", "\n"):
        ids = load_tokenizer(first).encode(text)
        assert ids == load_tokenizer(second).encode(text)
        assert load_tokenizer(first).detokenize(ids) == load_tokenizer(second).detokenize(ids) == text


# --- what is refused ---

BAD = {
    "other kind": ({"model": "bert"}, "'bert'"),
    "no kind": ({"model": None}, "None"),
    "unknown pre": ({"pre": "tekken"}, "'tekken'"),
    "one token short": ({"tokens": ["a"]}, "1 tokens"),
    "no merges": ({"merges": None}, "no merges"),
    "merge of unknown tokens": ({"merges": ["a ☃"]}, "merge 0"),
    "merge of one token": ({"merges": ["a"]}, "merge 0"),
    "too few types": ({"token_type": [1, 1]}, "token_type"),
    "unknown type": ({"token_type": [9] * 300}, "types go from 1 to 6"),
    "BOS outside": ({"bos_token_id": 300}, "bos_token_id is 300"),
    "EOS is a text": ({"eos_token_id": "</s>"}, "eos_token_id"),
}
BAD_SPM = {
    "no scores": ({"scores": None}, "scores"),
    "scores not finite": ({"scores": [float("nan")] * N}, "not finite"),
    "no byte tokens": ({"tokens": [f"t{i}" for i in range(N)]}, "byte token"),
    "twice": ({"tokens": [*SPM_TOKENS[:-1], SPM_TOKENS[-2]]}, "twice"),
    "prefix is a number": ({"add_space_prefix": 3}, "add_space_prefix"),
    "endless token": ({"tokens": [*SPM_TOKENS[:-1], "x" * 20_000]}, "too long"),
}


@pytest.mark.parametrize("case", [*BAD, *BAD_SPM])
def test_unknown_or_damaged_tokenizers_are_refused_in_one_line(tokenizer, case):
    changes, fragment = (BAD | BAD_SPM)[case]
    fields = bpe_fields(tokenizer) if case in BAD else dict(SPM)
    fields |= {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    with pytest.raises(CheckpointError) as caught:
        read(fields, 300 if case in BAD else N)
    assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


def test_message_names_the_file(tmp_path):
    fields = llama_fields(N) | {"tokenizer.ggml.model": "rwkv"}
    (tmp_path / "m.gguf").write_bytes(gguf_bytes(fields, llama_tensors(N)))
    with pytest.raises(CheckpointError, match=r"m\.gguf: the tokenizer is 'rwkv'"):
        read_gguf(tmp_path / "m.gguf")
