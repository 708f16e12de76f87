"""Added tokens that only the files beside a tokenizer.json list, and clean_up_tokenization_spaces."""

import json

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tinystory.checkpoint.tokens.listed import with_clean_spaces, with_listed_tokens
from tinystory.checkpoint.tokens.special import named_tokens
from tinystory.errors import CheckpointError
from tinystory.text.tokenizer import Detokenizer
from tinystory.text.tokenizer import Tokenizer as OurTokenizer

CONFIG, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
WORDS = ["<unk>", "he", "'s", "n't", "do", ".", "!", "'", "see"]


def words():
    fast = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return fast


@pytest.fixture
def folder(tmp_path):
    def write(files):
        for name, content in files.items():
            (tmp_path / name).write_text(json.dumps(content))
        return tmp_path

    return write


def listed(content, **flags):
    return {"content": content, "special": False, "normalized": False} | flags


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, []),
        ({ADDED: {"<b>": 10, "<a>": 9, "see": 8}}, [(9, "<a>", False), (10, "<b>", False)]),
        ({ADDED: {"<a>": 9}, MAP: {"eos_token": "<a>"}}, [(9, "<a>", True)]),
        ({ADDED: {"<a>": 9}, CONFIG: {"additional_special_tokens": ["<a>"]}}, [(9, "<a>", True)]),
        ({ADDED: {"<a>": 9}, MAP: {"extra_special_tokens": [{"content": "<a>"}]}}, [(9, "<a>", True)]),
        ({CONFIG: {"added_tokens_decoder": {"9": listed("<a>", special=True)}}}, [(9, "<a>", True)]),
        ({ADDED: {"<b>": 9}, CONFIG: {"added_tokens_decoder": {"9": listed("<a>")}}}, [(9, "<a>", False)]),
    ],
)
def test_listed_tokens_belong_to_the_tokenizer(folder, files, expected):
    fast = with_listed_tokens(words(), folder(files))
    assert [(i, t.content, t.special) for i, t in fast.get_added_tokens_decoder().items()] == expected
    tokenizer = OurTokenizer(fast, None, frozenset())
    for token_id, content, special in expected:
        assert tokenizer.encode(f"he {content} do")[1] == (0 if special else token_id)  # a special token is not typed
        assert tokenizer.detokenize([1, token_id, 4]) == ("he do" if special else f"he {content} do")


def test_flags_of_listed_tokens_count(folder):
    files = {CONFIG: {"added_tokens_decoder": {"9": listed("<a>", lstrip=True, rstrip=True)}}}
    (token,) = with_listed_tokens(words(), folder(files)).get_added_tokens_decoder().values()
    assert token == AddedToken("<a>", lstrip=True, rstrip=True, normalized=False)


@pytest.mark.parametrize(
    "files",
    [
        {ADDED: {"<a>": "x"}},
        {ADDED: {"<a>": -1}},
        {ADDED: {"<a>": 10**9}},
        {ADDED: {"": 9}},
        {CONFIG: {"added_tokens_decoder": ["<a>"]}},
        {CONFIG: {"added_tokens_decoder": {"9": "<a>"}}},
        {CONFIG: {"added_tokens_decoder": {"9": {}}}},
        {CONFIG: {"added_tokens_decoder": {"nine": listed("<a>")}}},
        {CONFIG: {"added_tokens_decoder": {"9": listed("a" * 2000)}}},
    ],
)
def test_damaged_lists_are_refused_in_one_line(folder, files):
    with pytest.raises(CheckpointError) as caught:
        with_listed_tokens(words(), folder(files))
    assert "\n" not in str(caught.value)
    assert any(name in str(caught.value) for name in (CONFIG, ADDED, "other files"))


def test_tokens_with_names_of_their_own_are_special(folder):
    named = named_tokens(
        folder({CONFIG: {"extra_special_tokens": {"image_token": "<i>", "x": "<x>"}, "eos_token": "."}})
    )
    assert {token for token, _ in named.values()} == {"<i>", "<x>", "."}


@pytest.mark.parametrize("decoder", [None, decoders.WordPiece(cleanup=False)])
def test_clean_spaces_of_a_text_and_of_a_stream(folder, decoder):
    fast = words()
    fast.decoder = decoder
    ids = [1, 2, 4, 3, 8, 5, 6, 1, 7, 2, 7, 1]
    assert OurTokenizer(fast, None, frozenset()).detokenize(ids) == "he 's do n't see . ! he ' 's ' he"
    with_clean_spaces(fast, folder({CONFIG: {"clean_up_tokenization_spaces": True}}))
    tokenizer = OurTokenizer(fast, None, frozenset())
    assert tokenizer.detokenize(ids) == "he's don't see.! he''s'he"
    stream = Detokenizer(tokenizer)
    assert "".join(map(stream.add, ids)) + stream.finish() == tokenizer.detokenize(ids)


@pytest.mark.parametrize("asked", [False, None, "true"])
def test_spaces_stay_if_nothing_asks_for_another_text(folder, asked):
    fast = with_clean_spaces(words(), folder({CONFIG: {"clean_up_tokenization_spaces": asked}}))
    assert fast.decoder is None
    bpe = Tokenizer(models.BPE())
    assert with_clean_spaces(bpe, folder({CONFIG: {"clean_up_tokenization_spaces": True}})).decoder is None
