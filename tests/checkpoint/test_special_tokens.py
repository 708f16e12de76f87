"""BOS, EOS and the tokens around a prompt: which ids they have, what names them, and what is refused."""

import json
import os
import sys

import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models, pre_tokenizers, processors

from tinystory.checkpoint import read_header, save_checkpoint
from tinystory.checkpoint.tokenizers import find_tokenizer, load_tokenizer, special_ids, tokenizer_warnings
from tinystory.checkpoint.tokens.special import SpecialIds, configured_ids
from tinystory.commands.info import describe_special_tokens
from tinystory.decoding import Token
from tinystory.errors import CheckpointError
from tinystory.model.config import ModelConfig
from tinystory.model.transformer import Transformer
from tinystory.session.loading import load_without_torch
from tinystory.story.lookback import request_of, written_ids
from tinystory.story.tree import ROOT, StoryTree, Turn, Written
from tinystory.text.sentences import whole_sentences
from tinystory.text.tokenizer import END_OF_TEXT

WORDS = ["<unk>", "<s>", "</s>", "once", "upon", "a", "time", ".", "<eot>"]


def words(single=None):
    """Return a tokenizer of whole words; `single` is its template."""
    fast = FastTokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if single:
        special = [(word, fast.token_to_id(word)) for word in single.split() if word != "$A"]
        fast.post_processor = processors.TemplateProcessing(single, special_tokens=special)
    return fast


@pytest.fixture
def stranger(tmp_path):
    """Return a function that writes a checkpoint as other programs do, and reads its header."""

    def write(fast, remove=(), files=None, **config):
        directory = tmp_path / f"model{len(list(tmp_path.iterdir()))}"
        model = Transformer(ModelConfig.llama(16, 1, 1, 8, 16, 8))
        save_checkpoint(directory, model, (fast or words()).to_str(), bos_id=None, eos_ids=(), provenance={})
        ours = ["tinystory.json", "generation_config.json", "tokenizer_config.json"]
        for name in ours if fast else [*ours, "tokenizer.json"]:
            (directory / name).unlink(missing_ok=True)
        content = json.loads((directory / "config.json").read_text()) | config
        (directory / "config.json").write_text(json.dumps({k: v for k, v in content.items() if k not in remove}))
        for name, document in (files or {}).items():
            (directory / name).write_text(document if isinstance(document, str) else json.dumps(document))
        return read_header(directory)

    return write


# --- what the configs name ---


@pytest.mark.parametrize(
    ("config", "generation", "vocab_size", "bos", "eos"),
    [
        ({"bos_token_id": 1, "eos_token_id": [2, 3]}, {}, 10, 1, {2, 3}),
        ({"bos_token_id": 1, "eos_token_id": 2}, {"eos_token_id": [4, 5]}, 10, 1, {4, 5}),
        ({"bos_token_id": 50256, "eos_token_id": [2, 50256]}, {}, 10, None, {2}),
        ({"eos_token_id": 2}, {"eos_token_id": 99}, 10, None, {2}),
        ({}, {}, None, None, set()),
        ({"bos_token_id": -1, "eos_token_id": -1}, {}, 10, None, set()),
        ({"eos_token_id": [-1, 3]}, {}, 10, None, {3}),
        ({"eos_token_id": 2}, {"eos_token_id": -1}, 10, None, {2}),
        ({"model_type": "llama"}, {}, 10, 1, {2}),
        ({"model_type": "llama"}, {}, 2, 1, set()),
        ({"model_type": "llama", "bos_token_id": None, "eos_token_id": None}, {}, 10, None, set()),
        ({"model_type": "llama", "eos_token_id": -1}, {}, 10, 1, set()),
        ({"model_type": "gpt2"}, {}, 50257, 50256, {50256}),
        ({"model_type": "gpt2"}, {}, 300, None, set()),
        ({"model_type": "gpt2"}, {"bos_token_id": 7}, 50257, 7, {50256}),
        ({"model_type": "other", "text_config": {"bos_token_id": 2, "eos_token_id": 1}}, {}, None, 2, {1}),
    ],
)
def test_ids_of_the_configs(config, generation, vocab_size, bos, eos):
    ids, _ = configured_ids(config, generation, vocab_size)
    assert (ids.bos_id, ids.eos_ids) == (bos, eos)
    assert (bool(ids.bos_from), bool(ids.eos_from)) == (bos is not None, bool(eos))


def test_an_eos_outside_the_vocabulary_is_one_warning():
    for config, generation in (({"eos_token_id": 99}, {}), ({"eos_token_id": 99}, {"eos_token_id": 99})):
        _, (warning,) = configured_ids(config, generation, 10)
        assert "eos_token_id is 99" in warning
        assert "10 tokens" in warning
        assert "\n" not in warning
    assert configured_ids({"eos_token_id": 99}, {"eos_token_id": 3}, 10)[1] == ()  # it would never have counted
    assert configured_ids({"model_type": "gpt2"}, {}, 10)[1] == ()  # nobody wrote it


@pytest.mark.parametrize("value", ["</s>", 1.5, True, [2, None], {"id": 2}])
def test_ids_of_other_types_are_refused(value):
    with pytest.raises(CheckpointError, match=r"eos_token_id is .*; it must be a whole number"):
        configured_ids({"eos_token_id": value}, {}, 10)


# --- the tokenizer of a checkpoint ---


@pytest.mark.parametrize(
    ("template", "prompt", "empty"),
    [
        (None, [3, 4], [1]),
        ("<s> $A", [1, 3, 4], [1]),
        ("<s> $A </s>", [1, 3, 4, 2], [1, 2]),
        ("$A <eot>", [3, 4, 8], [8]),
        ("<eot> <s> $A", [8, 1, 3, 4], [8, 1]),
    ],
)
def test_a_prompt_has_the_special_tokens_of_the_template(stranger, template, prompt, empty):
    header = stranger(words(template), bos_token_id=1, eos_token_id=2)
    tokenizer = load_tokenizer(header)
    assert tokenizer.encode("once upon") == prompt == tokenizer.fast.encode("once upon").ids
    assert tokenizer.encode("once upon", bos=False) == [3, 4]
    assert tokenizer.as_prompt(tokenizer.encode_batch(["once upon"])[0]) == prompt
    assert tokenizer.encode("") == empty
    assert tokenizer.n_before_text(prompt) == prompt.index(3)
    assert bool(tokenizer_warnings(header, tokenizer)) == (template is not None and template.endswith("</s>"))


def test_a_prompt_of_our_own_models_begins_with_bos_without_a_template(tmp_path, stranger):
    stranger(words())
    model = Transformer(ModelConfig.llama(16, 1, 1, 8, 16, 8))
    save_checkpoint(tmp_path / "own", model, words().to_str(), bos_id=1, eos_ids={2}, provenance={})
    assert load_tokenizer(read_header(tmp_path / "own")).encode("once") == [1, 3]


def test_an_empty_prompt_without_bos_has_no_token(stranger):
    tokenizer = load_tokenizer(stranger(words(), eos_token_id=2))
    assert (tokenizer.bos_id, tokenizer.encode("")) == (None, [])


def test_the_context_keeps_all_that_stands_before_the_text(stranger):
    tokenizer = load_tokenizer(stranger(words("<eot> <s> $A"), eos_token_id=2))
    story = tokenizer.encode("once upon a time . once upon a time .")
    kept = whole_sentences(tokenizer, story, 8)
    assert kept[:2] == [8, 1] == story[:2]
    assert len(kept) <= 8
    assert whole_sentences(tokenizer, story, 2)[-1] == story[-1]


CONFIG, MAP = "tokenizer_config.json", "special_tokens_map.json"
NAMES = {"bos_token": "<s>", "eos_token": {"content": "<eot>", "special": True}, "pad_token": None}


@pytest.mark.parametrize(
    ("files", "bos", "eos", "origin"),
    [
        ({}, None, set(), ""),
        ({CONFIG: NAMES}, 1, {8}, CONFIG),
        ({MAP: NAMES}, 1, {8}, MAP),
        ({CONFIG: {"eos_token": "</s>"}, MAP: NAMES}, 1, {8}, MAP),
        ({CONFIG: {"eos_token": "</s>", "added_tokens_decoder": {}}, MAP: NAMES}, None, {2}, CONFIG),
        ({CONFIG: {"eos_token": "<none>", "bos_token": 3}}, None, set(), ""),
    ],
)
def test_the_files_of_the_tokenizer_name_what_the_configs_lack(stranger, files, bos, eos, origin):
    header = stranger(words(), files=files)
    tokenizer = load_tokenizer(header)
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (bos, eos)
    ids = special_ids(header, tokenizer.fast)
    assert origin in ids.eos_from
    for token_id in {bos, *eos} - {None}:
        assert tokenizer.detokenize([3, token_id, 4]) == "once upon"  # it is no text of a story


def test_the_configs_come_before_the_tokenizer(stranger):
    header = stranger(words("<s> $A"), files={"tokenizer_config.json": NAMES}, eos_token_id=2, bos_token_id=5)
    tokenizer = load_tokenizer(header)
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (1, {2})  # the prompt begins with 1, so a story does
    assert load_tokenizer(stranger(words(), remove=("bos_token_id", "eos_token_id"))).eos_ids == {2}


def test_end_of_text_is_both_if_nothing_names_another(stranger):
    fast = words()
    fast.add_special_tokens([END_OF_TEXT])
    tokenizer = load_tokenizer(stranger(fast))
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (9, {9})
    assert load_tokenizer(stranger(fast, eos_token_id=2)).bos_id is None


def test_info_says_the_ids_and_what_names_them(stranger):
    header = stranger(words("<s> $A </s>"), eos_token_id=[2, 8])
    facts, (warning,) = describe_special_tokens(header)
    assert facts["eos"] == {"ids": [2, 8], "tokens": ["</s>", "<eot>"], "from": "config.json"}
    assert facts["bos"]["ids"] == facts["before_prompt"]["ids"] == [1]
    assert facts["after_prompt"] == {"ids": [2], "tokens": ["</s>"]}
    assert "</s>" in warning
    none, (reason,) = describe_special_tokens(stranger(None))
    assert none == {}
    assert "no tokenizer.json" in reason


def test_a_saved_story_has_the_prompt_of_its_record(stranger):
    """A session from before the template counted begins with BOS, and is replayed so."""
    tokenizer = load_tokenizer(stranger(words(), bos_token_id=1, eos_token_id=2))
    written = Written(
        spec="greedy", seed=1, number=0, model="m", model_hash="", dtype="float32", max_new_tokens=1, stop=(), heal="",
        tokens=(Token(4, -1.0),), finish_reason="length",
    )  # fmt: skip
    tree = StoryTree()
    turn = tree.add(Turn(
        id=0, parent=ROOT, kept=0, typed="once", typed_ids=(1, 3), written=written, vocabulary="", shared=0,
        own="once upon",
    ))  # fmt: skip
    assert request_of(tree, turn.id, tokenizer).prompt_ids == (1, 3)
    assert tokenizer.encode("once") == [3]
    assert written_ids(tree, turn.id, tokenizer) == (1, 3, 4)
    assert tokenizer.n_before_text((1, 3, 4)) == 1


# --- folders without a tokenizer.json ---

BPE = {"vocab.json": {"a": 0, "b": 1, "ab": 2, "<|im_end|>": 3, "Ġ": 4}, "merges.txt": "#version: 0.2\na b\n"}


def test_plain_gpt2_files_have_the_ids_of_the_config_and_no_invented_token(stranger, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)  # it is not imported
    header = stranger(None, files=BPE)
    object.__setattr__(header, "hf_config", {"model_type": "gpt2"})
    object.__setattr__(header, "special_ids", SpecialIds(3, frozenset({3}), "config.json", "config.json"))
    tokenizer = load_tokenizer(header)
    assert tokenizer.encode("ab a") == [2, 4, 0]
    assert (tokenizer.fast.get_vocab_size(), tokenizer.bos_id, tokenizer.eos_ids) == (5, 3, {3})
    assert tokenizer.encode("") == [3]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"tokenizer.model": ""}, ["only tokenizer.model", "SentencePiece", "save_pretrained"]),
        ({"spiece.model": ""}, ["only spiece.model", "SentencePiece"]),
        ({"tekken.json": {}}, ["only tekken.json", "Mistral"]),
        ({"qwen.tiktoken": ""}, ["only qwen.tiktoken", "tiktoken"]),
        ({"vocab.json": BPE["vocab.json"]}, ["vocab.json without merges.txt"]),
        ({"merges.txt": ""}, ["merges.txt without vocab.json"]),
        ({}, ["no tokenizer.json"]),
    ],
)
def test_what_cannot_be_read_is_refused_by_name_in_one_line(stranger, files, words):
    with pytest.raises(CheckpointError) as caught:
        load_tokenizer(stranger(None, files=files))
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_pipe_is_not_read(stranger):
    header = stranger(None, files={**BPE, "added_tokens.json": {}})
    (header.directory / "merges.txt").unlink()
    os.mkfifo(header.directory / "merges.txt")
    with pytest.raises(CheckpointError, match="not a regular file"):
        load_tokenizer(header)


def test_a_folder_of_gpt2_files_alone_is_a_tokenizer_for_a_new_run(tmp_path):
    for name, content in BPE.items():
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    tokenizer = find_tokenizer(str(tmp_path))
    assert tokenizer.encode("ab") == [5, 2]
    assert tokenizer.fast.id_to_token(5) == END_OF_TEXT


@pytest.mark.parametrize(
    ("template", "files", "bos", "eos"),
    [
        (None, {}, 9, {9}),
        (None, {"tokenizer_config.json": NAMES}, 1, {8}),
        (None, {"special_tokens_map.json": NAMES}, 1, {8}),
        (None, {"config.json": {"bos_token_id": 3, "eos_token_id": [2, 99]}}, 3, {2}),
        (None, {"config.json": {"eos_token_id": 2}, "generation_config.json": {"eos_token_id": [4, 5]}}, 9, {4, 5}),
        ("<s> $A", {"config.json": {"eos_token_id": 2}}, 1, {2}),
        (None, {"tokenizer_config.json": {"eos_token": "<x>"}, "added_tokens.json": {"<x>": 10}}, 9, {10}),
    ],
)
def test_a_folder_gives_a_new_run_the_ids_that_its_files_name(tmp_path, template, files, bos, eos):
    fast = words(template)
    fast.add_special_tokens([END_OF_TEXT])
    for name, content in ({"tokenizer.json": json.loads(fast.to_str())} | files).items():
        (tmp_path / name).write_text(json.dumps(content))
    tokenizer = find_tokenizer(str(tmp_path))
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (bos, eos)
    named = [] if "config.json" in files else [tokenizer.bos_id, *tokenizer.eos_ids]
    assert tokenizer.detokenize([3, *named, 4]) == "once upon"  # the new model never takes them for text


def test_a_template_with_a_token_that_the_model_lacks_is_refused(stranger):
    fast = words("<s> $A")
    header = stranger(fast, files={"tokenizer.json": fast.to_str().replace('"ids":[1]', '"ids":[99]')})
    with pytest.raises(CheckpointError, match="puts the token 99 into each prompt, but the model has only 16 tokens"):
        load_without_torch("model", header)
