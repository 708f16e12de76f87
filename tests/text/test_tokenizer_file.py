"""A tokenizer.json of a stranger is checked before the library reads it: it is right, or refused in one line."""

import base64
import json
import struct

import pytest

from tinystory.checkpoint.shipped import SHIPPED_MODELS
from tinystory.cli import main
from tinystory.errors import CheckpointError
from tinystory.text.tokenizer import Tokenizer
from tinystory.text.tokenizer_file import MAX_TOKENIZER_BYTES, check_tokenizer

BPE = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "<unk>": 3}, "merges": ["a b"], "unk_token": "<unk>"}
SOUND = {"version": "1.0", "added_tokens": [], "model": BPE}


def added(**fields):
    token = {"id": 4, "content": "<s>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"added_tokens": [token | {"special": True} | fields]}


def model(**fields):
    return {"model": BPE | fields}


def replace(pattern, content="", kind="String"):
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def split(pattern):
    return {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}}


def sequence(name, key, *parts):
    return {name: {"type": "Sequence", key: list(parts)}}


def nested(depth, part):
    for _ in range(depth):
        part = {"type": "Sequence", "decoders": [part]}
    return {"decoder": part}


def table(trie, replacements, size=None):
    """Return a precompiled normalizer; `size` is the size of the trie that it claims."""
    raw = (
        struct.pack("<I", 4 * len(trie) if size is None else size) + struct.pack(f"<{len(trie)}I", *trie) + replacements
    )
    return {"normalizer": {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(raw).decode()}}


def template(*pieces):
    single = [{"Sequence": {"id": piece, "type_id": 0}} for piece in pieces]
    return {"post_processor": {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {}}}


REFUSED = {
    "no model": ({"model": None}, "model is None"),
    "a model of another kind": (model(type="CharBPE"), "one of BPE, Unigram"),
    "an id that takes gigabytes": (model(vocab={"a": 2**32 - 1}), "id of the token 'a' is 4294967295"),
    "an id below 0": (model(vocab={"a": -1}), "id of the token 'a' is -1"),
    "an added id that takes gigabytes": (added(id=2**31), "id of the token '<s>' is 2147483648"),
    "a long added token": (added(content="a" * 10**6), "1000000 characters; at most"),
    "an added token that is special and is not": (
        {"added_tokens": [added(special=special)["added_tokens"][0] for special in (True, False)]}, "stands twice",
    ),
    "an added token without a text": (added(content=None), "must be a text"),
    "a merge without the prefix": (model(continuing_subword_prefix="##"), "the merge 'a b' does not fit"),
    "a merge of one token": (model(continuing_subword_prefix="##", merges=[["a"]]), "does not fit"),
    "a prefix that is no text": (model(continuing_subword_prefix=7), "it must be a text"),
    "a long suffix": (model(end_of_word_suffix="x" * 10**6), "end_of_word_suffix has 1000000 characters"),
    "an unknown normalizer": ({"normalizer": {"type": "Lowercas"}}, "did you mean Lowercase"),
    "a normalizer without a type": ({"normalizer": {}}, "must be an object with one of the types"),
    "a decoder as pre-tokenizer": ({"pre_tokenizer": {"type": "Fuse"}}, "pre_tokenizer has the part 'Fuse'"),
    "a normalizer for nothing": ({"normalizer": replace("")}, "pattern is empty"),
    "a decoder for nothing": ({"decoder": replace("", "x", "Regex")}, "pattern is empty"),
    "a pattern that is none": ({"normalizer": {"type": "Replace", "pattern": 5, "content": ""}}, "it must be a text"),
    "a long pattern": (split("a" * 10**6), "1000000 characters; at most"),
    "a pattern that is wrong": (split("("), "Oniguruma error"),
    "a pattern of unlimited time": (split("(a+)+$"), "retry-limit"),
    "a long prefix": ({"normalizer": {"type": "Prepend", "prepend": "a" * 10**7}}, "10000000 characters"),
    "a text that doubles 30 times": (
        sequence("normalizer", "normalizers", *[replace("a", "aa")] * 30), r"1\.07e\+09 times as long",
    ),
    "a text that doubles 30 times in two places": (
        sequence("normalizer", "normalizers", *[replace("a", "aa")] * 8)
        | sequence("pre_tokenizer", "pretokenizers", *[{"type": "ByteLevel", "add_prefix_space": False}] * 8),
        "times as long",
    ),
    "a token that doubles 30 times": (sequence("decoder", "decoders", *[replace("a", "aa")] * 30), "decoder may make"),
    "a thousand parts": (sequence("normalizer", "normalizers", *[{"type": "NFC"}] * 1000), "1000 parts; at most"),
    "a sequence without parts": ({"normalizer": {"type": "Sequence"}}, "normalizers is None"),
    "sequences in sequences": (nested(50, {"type": "Fuse"}), "sequences in sequences"),
    "more sequences than Python can follow": (nested(450, {"type": "Fuse"}), "nested too deeply|sequences in"),
    "words of no length": ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "must be at least 1"),
    "a table of gigabytes": (table([0], b"\0", 2**32 - 4), "not a table of SentencePiece"),
    "a table without a trie": (table([], b""), "not a table of SentencePiece"),
    "a table that is cut": ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "not a table"),
    "a table that is no text": ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": None}}, "be a text"),
    "a table that is no base64": ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "▁"}}, "not base64"),
    "a table of other bytes": (table([0] * 256, b"\xff\0"), "not UTF-8"),
    "a table that makes a text long": (table([0] * 256, b"x" * 10_000 + b"\0"), "more than 256 bytes"),
    "a table that leads out of itself": (table([255 << 10], b"\0"), "index out of bounds|not a tokenizer"),
    "a table after a table": (
        {"normalizer": {"type": "Sequence", "normalizers": [table([0] * 256, b"x" * 200 + b"\0")["normalizer"]] * 2}},
        "times as long",
    ),
    "added tokens of gigabytes": (
        {"normalizer": {"type": "Sequence", "normalizers": [replace("a", "a" * 1000)]}}
        | {"added_tokens": [added(content=f"<{n}{'a' * 900}>", normalized=True)["added_tokens"][0] for n in range(9)]},
        "added_tokens may have",
    ),
    "added tokens with long prefixes": (
        {"normalizer": {"type": "Prepend", "prepend": "a" * 1000}}
        | {"added_tokens": added(normalized=True)["added_tokens"] * 5000},
        "added_tokens may have",
    ),
    "a Unigram of gigabytes": (
        {"model": {"type": "Unigram", "vocab": [["x" * 500_000, -1.0]] * 9, "unk_id": 0}}, "tokens of model.vocab have",
    ),
    "words without a limit": (
        {"model": {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "a", "max_input_chars_per_word": 10**9}},
        "max_input_chars_per_word is 1000000000",
    ),
    "a template with the text twice": (template("A", "A"), "sequence A once"),
    "a template without the text": (template(), "sequence A once"),
    "a template with another text": (template("A", "B"), "sequence A once"),
    "a surrogate": ({"normalizer": replace("a", "\ud800")}, "is not a tokenizer"),
}  # fmt: skip


def write(path, **changes):
    path.write_text(json.dumps(SOUND | changes))
    return path


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(name, tmp_path, capfd):
    changes, fragment = REFUSED[name]
    with pytest.raises(CheckpointError, match=fragment) as caught:
        Tokenizer.from_file(write(tmp_path / "tokenizer.json", **changes))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert capfd.readouterr().err == ""


KEPT = {
    "no type of the model": {"model": {key: value for key, value in BPE.items() if key != "type"}},
    "empty texts of GPT-2": model(unk_token=None, continuing_subword_prefix="", end_of_word_suffix=""),
    "merges as pairs": model(merges=[["a", "b"]]),
    "a prefix that fits": model(
        vocab={"a": 0, "##b": 1, "ab": 2, "<unk>": 3}, merges=["a ##b"], continuing_subword_prefix="##"
    ),
    "a limit and padding": {
        "truncation": {"max_length": 1, "stride": 0, "strategy": "LongestFirst", "direction": "Right"},
        "padding": {
            "strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 3,
            "pad_type_id": 0, "pad_token": "<unk>",
        },
    },
    "an ordinary template": template("A"),
    "a decoder that strips more than a token has": {
        "decoder": {"type": "Strip", "content": "a", "start": 10**18, "stop": 10**18}
    },
    "a sequence in a sequence": nested(3, {"type": "Fuse"}),
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
def test_unusual_but_sound(name, tmp_path):
    tokenizer = Tokenizer.from_file(write(tmp_path / "tokenizer.json", **KEPT[name]))
    assert tokenizer.encode("ab") == [2]
    tokenizer.detokenize([2, 0])


@pytest.mark.parametrize("name", SHIPPED_MODELS)
def test_our_own_tokenizers_pass(name):
    path = SHIPPED_MODELS[name] / "tokenizer.json"
    check_tokenizer(path.read_text(encoding="utf-8"), str(path))


def test_a_file_of_other_bytes_and_a_huge_one_are_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match="not UTF-8"):
        Tokenizer.from_file(path)
    with path.open("wb") as file:
        file.truncate(MAX_TOKENIZER_BYTES + 1)
    with pytest.raises(CheckpointError, match="is larger than"):
        Tokenizer.from_file(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match="not a regular file"):
        Tokenizer.from_file(path)


WORDS = {
    "model": {"type": "WordLevel", "vocab": {"once": 0, "upon": 1}, "unk_token": "missing"},
    "pre_tokenizer": {"type": "WhitespaceSplit"},
}


def test_a_text_that_cannot_be_encoded_is_one_line_and_the_next_one_works(tmp_path, capfd):
    tokenizer = Tokenizer.from_file(write(tmp_path / "tokenizer.json", **WORDS))
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_batch([text])):
        with pytest.raises(CheckpointError, match=r"cannot turn this text into tokens: .*Missing") as caught:
            encode("once more")
        assert "\n" not in str(caught.value)
    assert tokenizer.encode("once upon") == [0, 1]
    assert capfd.readouterr().err == ""


def test_tokens_that_cannot_be_detokenized_are_one_line(tmp_path, capfd):
    """A search of a regular expression that has no end begins with a token that the load did not try."""
    decoder = {"type": "Sequence", "decoders": [replace("(z+)+$", "", "Regex")]}
    vocabulary = {"once": 0, "z" * 40 + "!": 1}
    tokenizer = Tokenizer.from_file(
        write(tmp_path / "tokenizer.json", model=WORDS["model"] | {"vocab": vocabulary}, decoder=decoder)
    )
    with pytest.raises(CheckpointError, match="cannot turn these tokens into text: Onig"):
        tokenizer.detokenize([1])
    assert tokenizer.detokenize([0]) == "once"
    assert capfd.readouterr().err == ""


def test_the_command_line_refuses_with_exit_code_3(checkpoint, tmp_path, capfd):
    for path in checkpoint.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = json.loads((checkpoint / "tokenizer.json").read_text())
    content["model"]["continuing_subword_prefix"] = "##"
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert main(["generate", "Once", "-m", str(tmp_path), "-n", "2"]) == 3
    error = capfd.readouterr().err
    assert error.startswith("tinystory: ")
    assert "continuing_subword_prefix" in error
    assert error.count("\n") == 1


def test_two_tokens_with_one_id_are_refused():
    """The text of one of them would be lost, and the model would read other words than the user wrote."""
    content = SOUND | model(vocab={"a": 0, "b": 1, "ab": 1, "<unk>": 3})
    with pytest.raises(CheckpointError, match="the tokens 'b' and 'ab' have the same id, 1"):
        check_tokenizer(json.dumps(content).encode(), "tokenizer.json")
