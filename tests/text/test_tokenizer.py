"""Text to ids and back, also token by token."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models

from tinystory.checkpoint.tokenizers import find_tokenizer
from tinystory.errors import CheckpointError
from tinystory.text.tokenizer import END_OF_TEXT, Detokenizer, Tokenizer


def pieces_of(tokenizer, ids):
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.add(i) for i in ids), detokenizer.finish()]


@settings(deadline=None, max_examples=300)
@given(ids=st.lists(st.integers(0, 299), max_size=30))
def test_pieces_of_any_ids_concatenate_to_the_whole(tokenizer, ids):
    assert "".join(pieces_of(tokenizer, ids)) == tokenizer.detokenize(ids)


@settings(deadline=None, max_examples=200)
@given(text=st.text(max_size=60))
def test_any_text_comes_back_and_no_piece_splits_a_character(tokenizer, text):
    ids = tokenizer.encode(text, bos=False)
    assert tokenizer.detokenize(ids) == text
    pieces = pieces_of(tokenizer, ids)
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert "\ufffd" not in "".join(pieces)


def test_bos_comes_first_and_vanishes_from_text(tokenizer):
    assert tokenizer.encode("Tim") == [0, *tokenizer.encode("Tim", bos=False)]
    assert tokenizer.detokenize(tokenizer.encode("Tim")) == "Tim"


def test_a_typed_end_of_text_is_text(tokenizer):
    """A prompt must not end its own story, so the text of the separator is ordinary text."""
    ids = tokenizer.encode(f"a{END_OF_TEXT}b", bos=False)
    assert 0 not in ids
    assert tokenizer.detokenize(ids) == f"a{END_OF_TEXT}b"


def test_a_file_that_truncates_and_pads_shortens_nothing(tokenizer, tmp_path):
    limited = FastTokenizer.from_str(tokenizer.to_json())
    limited.enable_truncation(4)
    limited.enable_padding(length=50)
    limited.save(str(tmp_path / "tokenizer.json"))
    text = "Once upon a time, there was Tim."
    assert Tokenizer.from_file(tmp_path / "tokenizer.json").encode(text) == tokenizer.encode(text)


@pytest.mark.parametrize("dropout", [0.5, 1.0])
def test_a_file_with_bpe_dropout_encodes_a_text_in_one_way(tokenizer, tmp_path, dropout):
    """A seed would not be one story if each encoding dropped other merges."""
    path, text = tmp_path / "tokenizer.json", "Once upon a time, there was a little girl."
    content = json.loads(tokenizer.to_json())
    content["model"]["dropout"] = dropout
    path.write_text(json.dumps(content))
    expected = tokenizer.encode(text)
    for dropping in (Tokenizer.from_file(path, 0, {0}), find_tokenizer(str(path)), find_tokenizer(str(tmp_path))):
        assert [dropping.encode(text) for _ in range(20)] == [expected] * 20
        assert dropping.encode_batch([text] * 20) == [expected[1:]] * 20
        assert Tokenizer(FastTokenizer.from_str(dropping.to_json()), 0, frozenset({0})).encode(text) == expected
    assert json.loads(path.read_text()) == content


def test_a_part_of_a_character_is_shown_by_its_bytes(tokenizer):
    euro = tokenizer.encode("€", bos=False)
    assert len(euro) == 3
    assert [tokenizer.token_text(i) for i in euro] == ["<0xE2>", "<0x82>", "<0xAC>"]
    assert tokenizer.token_text(0) == END_OF_TEXT


def test_a_token_that_spells_no_bytes_is_its_own_text():
    """A vocabulary may have such tokens without marking them as added; the library then takes them as they are."""
    fast = FastTokenizer(models.BPE({"a": 0, "Ġ▁x": 1, "Ġb": 2, "Ã": 3, "©": 4, "Ã中": 5}, []))
    fast.decoder = decoders.ByteLevel()
    tokenizer = Tokenizer(fast, None, frozenset())
    for ids in ([0, 1], [0, 2, 1, 2], [3, 4], [5, 4, 0]):
        assert tokenizer.detokenize(ids) == fast.decode(ids) == "".join(pieces_of(tokenizer, ids))


def test_another_kind_of_vocabulary_streams_too(word_tokenizer_json, tmp_path):
    (tmp_path / "tokenizer.json").write_text(word_tokenizer_json)
    words = Tokenizer.from_file(tmp_path / "tokenizer.json", bos_id=0)
    ids = [1, 2, 3, 4]
    assert "".join(pieces_of(words, ids)) == words.detokenize(ids) == "once upon a time"


def test_gpt2_files_give_gpt2_ids(shared_data):
    """The ids equal those of transformers for the same files."""
    transformers = pytest.importorskip("transformers")
    folder = shared_data / "tokenizers" / "gpt2"
    ours = Tokenizer.from_bpe_files(folder)
    theirs = transformers.GPT2TokenizerFast(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))
    for text in ["Once upon a time, there was", "  two  spaces\n\nand it's 3.14 – ok?", "Zoë’s 🙂 naïve"]:
        assert ours.encode(text, bos=False) == theirs(text, add_special_tokens=False).input_ids
    assert ours.bos_id == 50256
    assert ours.vocab_size == 50257


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": "1.0"}'])
def test_a_damaged_file_is_one_clear_error(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"is not a tokenizer|is not valid JSON|must be an object") as caught:
        Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert "\n" not in str(caught.value)


def test_a_missing_file_says_what_is_needed(tmp_path):
    with pytest.raises(CheckpointError, match=r"needs a tokenizer\.json"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")
    with pytest.raises(CheckpointError, match=r"no readable vocab\.json"):
        Tokenizer.from_bpe_files(tmp_path)


def test_a_byte_order_mark_before_a_tokenizer_json_is_skipped(tokenizer, tmp_path):
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8-sig")
    assert Tokenizer.from_file(tmp_path / "tokenizer.json").to_json() == tokenizer.to_json()
