"""The text of tokens that arrive one by one, for each kind of vocabulary."""

import os
from itertools import product

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models
from tokenizers import Tokenizer as FastTokenizer

from tinystory.errors import CheckpointError
from tinystory.text.tokenizer import Detokenizer, Tokenizer

BYTES = [f"<0x{byte:02X}>" for byte in (0x0A, 0x41, 0x42, 0x20, 0x9F, 0xC3, 0xA9, 0xE2, 0x82, 0xAC, 0xED, 0xF0, 0xFF)]
SPELLED = ["a", "ch", " ", "  ", "▁", "▁▁", "▁the", " the", "e▁", "##ing", "##", ".", "n't", "'", "</w>", "b</w>", "|"]
ODD = ["<pad>", "<0xa9>", "<0x+A>", "<0x0>", "<0xé>", "Ġthe", "Ã", "©", "€", "�", "ab", "b"]
TOKENS = ["<s>", "<unk>", *BYTES, *SPELLED, *ODD]
ID = {token: i for i, token in enumerate(TOKENS)}

REPLACE = decoders.Replace("▁", " ")
WHOLE = decoders.Fuse()
FALLBACK = decoders.ByteFallback()
LLAMA = decoders.Sequence([REPLACE, FALLBACK, WHOLE, decoders.Strip(" ", 1, 0)])
DECODERS = {
    "llama": LLAMA,
    "gemma": decoders.Sequence([REPLACE, FALLBACK, WHOLE]),
    "llama2c": decoders.Sequence([FALLBACK, WHOLE, decoders.Strip(" ", 1, 0)]),
    "bytes-then-words": decoders.Sequence([FALLBACK, decoders.Metaspace()]),
    "bytes-unfused": decoders.Sequence([REPLACE, FALLBACK, decoders.Strip(" ", 1, 0)]),
    "nested": decoders.Sequence([decoders.Sequence([FALLBACK]), decoders.Sequence([WHOLE, REPLACE])]),
    "metaspace": decoders.Metaspace(),
    "metaspace-never": decoders.Metaspace(prepend_scheme="never"),
    "wordpiece": decoders.WordPiece(),
    "wordpiece-plain": decoders.WordPiece(cleanup=False),
    "suffix": decoders.BPEDecoder(),
    "ctc": decoders.CTC(),
    "none": None,
    "byte-level-inside": decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 2, 0)]),
    "pattern-after-joining": decoders.Sequence([WHOLE, decoders.Replace("aba", "X"), decoders.Replace("ch", "")]),
    "regex": decoders.Sequence([decoders.Replace(Regex("[ab]+"), "-"), decoders.Metaspace()]),
    "held-to-the-end": decoders.Sequence([WHOLE, decoders.Replace(Regex("(a|ch)+"), "-")]),
}


def vocabulary(decoder, model=None):
    fast = FastTokenizer(model or models.WordLevel(ID, unk_token="<unk>"))
    fast.add_special_tokens([AddedToken("<s>", special=True)])
    if decoder is not None:
        fast.decoder = decoder
    return Tokenizer(fast, 0, frozenset({0}))


def stream(tokenizer, ids, before=()):
    detokenizer = Detokenizer(tokenizer, before)
    return [*(detokenizer.add(i) for i in ids), detokenizer.finish()]


def ids_of(*tokens):
    return [ID[token] for token in tokens]


def library(tokenizer, ids):
    return tokenizer.fast.decode([i for i in ids if i >= 0], skip_special_tokens=True)


any_ids = st.lists(st.integers(-1, len(TOKENS) + 1), max_size=25)
byte_ids = st.lists(st.sampled_from([0, *ids_of(*BYTES, "ch", "▁the")]), max_size=12)


@pytest.mark.parametrize("kind", DECODERS)
@settings(deadline=None, max_examples=40)
@given(ids=any_ids | byte_ids)
@example(ids=ids_of("<0x0A>", "<0xF0>", "ch"))
@example(ids=ids_of("<0x41>", "<0x42>", "<0x9F>"))
@example(ids=ids_of("<0xE2>", "<0x82>", "<s>", "<0xAC>", "<0x0A>"))
def test_the_pieces_of_any_ids_add_up_for_every_kind_of_vocabulary(kind, ids):
    tokenizer = vocabulary(DECODERS[kind])
    pieces = stream(tokenizer, ids)
    assert "".join(pieces) == tokenizer.detokenize(ids) == library(tokenizer, ids)
    half = len(ids) // 2
    detokenizer = Detokenizer(tokenizer)
    assert "".join([detokenizer.add(i) for i in ids[:half]]) == "".join(pieces[:half])
    assert detokenizer.peek(ids[half:]) == "".join(pieces[half:-1])
    assert [*map(detokenizer.add, ids[half:]), detokenizer.finish()] == pieces[half:]  # a peek changes nothing


@pytest.mark.parametrize(
    "model",
    [
        models.BPE(ID, [], unk_token="<unk>", byte_fallback=True),
        models.Unigram([(token, -float(i)) for token, i in ID.items()], 1, True),
        models.WordPiece(ID, unk_token="<unk>"),
    ],
    ids=["bpe", "unigram", "wordpiece"],
)
def test_the_kind_of_model_changes_nothing(model):
    tokenizer = vocabulary(LLAMA, model)
    ids = ids_of("<s>", "▁the", "<0x0A>", "<0xF0>", "ch", "<0xE2>", "<0x82>", "<0xAC>")
    assert stream(tokenizer, ids) == ["", "the", "", "", "��ch", "", "", "", "€"]


@pytest.mark.parametrize(
    ("kind", "tokens", "pieces"),
    [
        (
            "llama",
            ["▁the", "a", "<0xC3>", "<0xA9>", "ch", "<0x0A>", "▁the"],
            ["the", "a", "", "", "éch", "", "\n the", ""],
        ),
        (
            "llama",
            ["a", "<0x41>", "<0xFF>", "<0x42>", "a"],
            ["a", "", "��", "�", "a", ""],
        ),  # the run is broken for good
        ("llama", ["a", "<0x41>", "<0xE2>"], ["a", "", "", "��"]),
        ("llama", ["<s>", "▁", "▁▁", "a"], ["", "", "  ", "a", ""]),
        ("metaspace", ["▁the", "▁the", "a"], ["the", " the", "a", ""]),
        ("wordpiece", ["a", "##ing", "."], ["a", "ing", ".", ""]),
        ("suffix", ["a", "b</w>", "ch"], ["", "a", "b ", "ch"]),
        ("none", ["a", "ch"], ["a", " ch", ""]),
        ("byte-level-inside", ["  ", "Ã", "©", "Ã", "a"], ["", "", "é", "", "�a", ""]),
        ("pattern-after-joining", ["a", "b", "b", "ab", "a"], ["", "", "abb", "", "X", ""]),
    ],
)
def test_no_more_is_held_back_than_may_change(kind, tokens, pieces):
    assert stream(vocabulary(DECODERS[kind]), ids_of(*tokens)) == pieces


@settings(deadline=None, max_examples=100)
@given(ids=byte_ids)
@example(ids=ids_of("<0xED>", "<0xAC>"))  # half of a surrogate, which is never text
def test_a_piece_is_held_back_only_while_it_may_change(ids):
    """A text that the library gives with each continuation is given at once."""
    tokenizer = vocabulary(LLAMA)
    endings = [(), ("ch",), ("<0xFF>",), *(way for n in (1, 2, 3) for way in product(("<0x9F>", "<0xA9>"), repeat=n))]
    ways = [[*ids, *ids_of(*ending)] for ending in endings]
    texts = [library(tokenizer, way) for way in ways]
    given_at_once = "".join(stream(tokenizer, ids)[:-1])
    assert given_at_once == os.path.commonprefix(texts)  # noqa: RUF071 - texts, not paths


@pytest.mark.parametrize(
    ("before", "ids", "text"),
    [
        (["▁the", "<0x0A>"], ["ch"], "ch"),
        (["▁the", "<0x0A>"], ["<0x0A>", "ch"], "\nch"),
        (["▁the", "<0xE2>", "<0x82>"], ["<0xAC>", "ch"], "€ch"),
        (["▁the", "<0xE2>", "<0x82>"], ["ch"], "ch"),
        (["▁the", "<0x41>", "<0x42>"], [], ""),
        (["▁the"], ["▁the"], " the"),
    ],
)
def test_the_text_before_is_left_out_once(before, ids, text):
    assert "".join(stream(vocabulary(LLAMA), ids_of(*ids), ids_of(*before))) == text


@pytest.mark.parametrize("kind", ["suffix", "held-to-the-end", "wordpiece", "metaspace"])
def test_a_story_goes_on_after_its_prompt(kind):
    tokenizer = vocabulary(DECODERS[kind])
    before, ids = ids_of("b", "##ing", "b</w>"), ids_of("b", "ab", "b")
    whole = tokenizer.detokenize(before) + "".join(stream(tokenizer, ids, before))
    assert whole.replace(" ", "") == tokenizer.detokenize([*before, *ids]).replace(" ", "")


def test_text_that_would_stop_the_library_is_text_to_us(capfd):
    """The library panics where `Strip` may cut more characters than there are."""
    strip = decoders.Strip(" ", 1, 2)
    tokenizer = vocabulary(decoders.Sequence([WHOLE, strip]))
    for tokens, text in [([" "], ""), ([], ""), ([" ", "a", " ", "  "], "a "), ([" ", " the", "  "], " the")]:
        assert tokenizer.detokenize(ids_of(*tokens)) == "".join(stream(tokenizer, ids_of(*tokens))) == text
    each = vocabulary(strip)
    assert (
        each.detokenize(ids_of(" ", " the", "a", "  "))
        == "thea"
        == "".join(stream(each, ids_of(" ", " the", "a", "  ")))
    )
    assert "panicked" not in capfd.readouterr().err
    assert library(tokenizer, ids_of(" ", "a", "b", " ")) == tokenizer.detokenize(ids_of(" ", "a", "b", " ")) == "ab"


class Broken:
    """A decoder in Python, as a library user may write it."""

    def decode_chain(self, tokens):
        raise RuntimeError("no\nway") if "ch" in tokens else KeyboardInterrupt

    def decode(self, tokens):
        return "".join(self.decode_chain(tokens))


def test_a_decoder_that_fails_is_one_line():
    tokenizer = vocabulary(decoders.Decoder.custom(Broken()))
    for attempt in (tokenizer.detokenize, lambda ids: stream(tokenizer, ids)):
        with pytest.raises(CheckpointError, match=r"decoder in tokenizer\.json cannot turn these tokens") as caught:
            attempt(ids_of("a", "ch"))
        assert "\n" not in str(caught.value)
