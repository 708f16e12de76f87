"""Valid tokenizers, small, with every kind of model, normalizer, pre-tokenizer, post-processor and decoder."""

import base64
import json
import struct

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

LETTERS = "abcdefghijklmnopqrstuvwxyz.!?, "
STORY = "once upon a time, there was a cat."


def seeds():
    """Return the content of twelve tokenizer.json files, as objects."""
    return [json.loads(make().to_str()) for make in MAKERS]


def _bpe(alphabet, words, space=" ", prefix="", suffix="", **options):
    """Return a BPE that spells each word from left to right."""
    tokens = dict.fromkeys(["<unk>", "<s>", "</s>", *alphabet])
    merges = []
    for word in words:
        pieces = [(prefix if i else "") + c for i, c in enumerate(word.replace(" ", space))]
        pieces[-1] += suffix
        tokens |= dict.fromkeys(pieces)
        left = pieces[0]
        for right in pieces[1:]:
            merges.append((left, right))
            left += right[len(prefix) :]
            tokens[left] = None
    vocabulary = {token: i for i, token in enumerate(tokens)}
    options |= {"continuing_subword_prefix": prefix} if prefix else {}
    options |= {"end_of_word_suffix": suffix} if suffix else {}
    return models.BPE(vocabulary, list(dict.fromkeys(merges)), **options)


def _tokenizer(model, normalizer=None, pre_tokenizer=None, post_processor=None, decoder=None, added=()):
    tokenizer = Tokenizer(model)
    for name, part in (
        ("normalizer", normalizer), ("pre_tokenizer", pre_tokenizer), ("post_processor", post_processor),
        ("decoder", decoder),
    ):  # fmt: skip
        if part is not None:
            setattr(tokenizer, name, part)
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.add_tokens(list(added))
    return tokenizer


def _template():
    return processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 1), ("</s>", 2)]
    )


def charsmap():
    """Return a table of SentencePiece that turns "ﬁ" into "fi" and "…" into "...", in base64."""
    replacements = b"fi\0...\0"
    trie = {}
    for key, value in (("ﬁ".encode(), 0), ("…".encode(), 3)):
        node = trie
        for byte in key:
            node = node.setdefault(byte, {})
        node[0] = value
    blocks = []

    def add(node):
        base = 256 * len(blocks)
        blocks.append([0] * 256)
        for byte, inner in node.items():
            if byte == 0:
                blocks[base // 256][0] = inner | 1 << 31
            else:
                position = base ^ byte
                blocks[base // 256][byte] = byte | (0 in inner) << 8 | (position ^ add(inner)) << 10
        return base

    blocks.append([0] * 256)
    blocks[0][0] = add(trie) << 10
    units = [unit for block in blocks for unit in block]
    return base64.b64encode(struct.pack(f"<I{len(units)}I", 4 * len(units), *units) + replacements).decode()


def _word_pieces(cls, **options):
    tokens = ["<unk>", "<s>", "</s>", *LETTERS, *(f"##{c}" for c in LETTERS), "once", "##ce", "upon", "time"]
    return cls({token: i for i, token in enumerate(tokens)}, unk_token="<unk>", **options)


def _unigram(space="▁"):
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        space,
        *LETTERS,
        f"{space}once",
        f"{space}upon",
        "time",
        "<0xC3>",
        "<0xA9>",
        "e\u0301",
    ]
    return models.Unigram([(token, -float(i)) for i, token in enumerate(tokens)], 0, False)


def _byte_level():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return _tokenizer(
        _bpe(alphabet, ["once", " upon", " time"], space="Ġ"), None, pre_tokenizers.ByteLevel(add_prefix_space=False),
        processors.ByteLevel(trim_offsets=True), decoders.ByteLevel(),
    )  # fmt: skip


def _split_then_bytes():
    split = pre_tokenizers.Split(Regex(r"'s|'t| ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"), "isolated")
    return _tokenizer(
        _bpe(sorted(pre_tokenizers.ByteLevel.alphabet()), ["once", " upon"], space="Ġ", ignore_merges=True),
        normalizers.NFC(),
        pre_tokenizers.Sequence([split, pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False, use_regex=False)]),
        processors.Sequence([processors.ByteLevel(), _template()]), decoders.ByteLevel(), [AddedToken("<think>")],
    )  # fmt: skip


def _byte_fallback():
    tokens = [*(f"<0x{byte:02X}>" for byte in range(256)), *LETTERS, "▁"]
    return _tokenizer(
        _bpe(tokens, ["▁once", "▁upon", "▁a"], unk_token="<unk>", fuse_unk=True, byte_fallback=True),
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None, _template(),
        decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        ),
    )  # fmt: skip


def _suffixed():
    return _tokenizer(
        _bpe([*LETTERS, *(f"{c}</w>" for c in LETTERS)], ["once", "upon"], suffix="</w>", unk_token="<unk>"),
        normalizers.Sequence(
            [normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents(), normalizers.Strip()]
        ),
        pre_tokenizers.Whitespace(), processors.RobertaProcessing(("</s>", 2), ("<s>", 1)), decoders.BPEDecoder("</w>"),
        [AddedToken("cat", single_word=True, lstrip=True, rstrip=True)],
    )  # fmt: skip


def _prefixed():
    return _tokenizer(
        _bpe([*LETTERS, *(f"##{c}" for c in LETTERS)], ["once", "upon"], prefix="##", unk_token="<unk>"),
        normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]),
        pre_tokenizers.WhitespaceSplit(), None, decoders.WordPiece(),
    )  # fmt: skip


def _bert():
    return _tokenizer(
        _word_pieces(models.WordPiece), normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer(),
        processors.BertProcessing(("</s>", 2), ("<s>", 1)), decoders.WordPiece(),
    )  # fmt: skip


def _words():
    tokenizer = _tokenizer(
        _word_pieces(models.WordLevel), normalizers.NFKD(),
        pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), pre_tokenizers.CharDelimiterSplit(" ")]),
        _template(), None,
    )  # fmt: skip
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=9)
    return tokenizer


def _characters():
    return _tokenizer(
        _word_pieces(models.WordLevel), normalizers.ByteLevel(),
        pre_tokenizers.Sequence([pre_tokenizers.UnicodeScripts(), pre_tokenizers.FixedLength(1)]), None,
        decoders.CTC("<s>", "|", True), [AddedToken("the ", normalized=False)],
    )  # fmt: skip


def _sentence_piece():
    return _tokenizer(
        _unigram(),
        normalizers.Sequence(
            [normalizers.Precompiled(base64.b64decode(charsmap())), normalizers.Replace(Regex(" {2,}"), "▁")]
        ),
        pre_tokenizers.Metaspace(), _template(), decoders.Metaspace(),
    )  # fmt: skip


def _sentence_piece_in_words():
    return _tokenizer(
        _unigram(), normalizers.Lowercase(),
        pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace("▁", "first", False)]),
        None,
        decoders.Sequence([decoders.Metaspace(), decoders.Replace(Regex("e+"), "e"), decoders.Strip(" ", 0, 1)]),
    )  # fmt: skip


def _split_text():
    return _tokenizer(
        _unigram(" "), normalizers.Prepend(" "), pre_tokenizers.Split(" ", "merged_with_next"), None,
        decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 1, 2), decoders.Replace("..", "…")]),
    )  # fmt: skip


def _plain():
    return _tokenizer(_bpe(LETTERS, ["once", "upon"]), None, None, None, decoders.ByteFallback())


MAKERS = (
    _byte_level, _split_then_bytes, _byte_fallback, _suffixed, _prefixed, _bert, _words, _characters, _sentence_piece,
    _sentence_piece_in_words, _split_text, _plain,
)  # fmt: skip
