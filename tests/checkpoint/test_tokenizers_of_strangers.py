"""Compare with transformers: prompts and stories of twelve kinds of tokenizers, and folders without tokenizer.json."""

import json

import pytest
import torch

from tests.support.tokenizer_kinds import KINDS, build, tiny_model
from tinystory.checkpoint import read_header
from tinystory.checkpoint.tokenizers import find_tokenizer, load_tokenizer, special_ids
from tinystory.decoding import Decoder
from tinystory.errors import CheckpointError
from tinystory.session.loading import load
from tinystory.writing.generate import Ended, StoryRequest, write
from tinystory_decoders.greedy import Greedy

pytestmark = pytest.mark.slow
transformers = pytest.importorskip("transformers")

ARCHITECTURES = ("gpt2", "llama", "mistral", "qwen2", "gpt_neox")
PROMPT = "Once upon a time, it's Zoë’s 🙂 2048 I'M  two\n\nok"
N_TOKENS = 40


def special(fast, kind):
    """Return the BOS and EOS ids of a kind of tokenizer."""
    return (None if KINDS[kind][key] is None else fast.token_to_id(KINDS[kind][key]) for key in ("bos", "eos"))


def their_tokenizer(directory):
    """Return what AutoTokenizer gives, unless it has put other rules in the place of those in tokenizer.json.

    Version 5 does this for every model of the architecture qwen2: it cuts all texts as Qwen2 does.
    """
    auto = transformers.AutoTokenizer.from_pretrained(directory)
    plain = transformers.PreTrainedTokenizerFast.from_pretrained(directory)
    rules = [json.loads(one.backend_tokenizer.to_str())["pre_tokenizer"] for one in (auto, plain)]
    return auto if rules[0] == rules[1] else plain


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_and_greedy_stories_are_those_of_transformers(kind, tmp_path):
    """The ids of a prompt, the ids of a story and its text are equal for five architectures."""
    fast, names = build(kind), KINDS[kind]
    bos_id, eos_id = special(fast, kind)
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=fast, bos_token=names["bos"], eos_token=names["eos"], unk_token=names.get("unk")
    )
    for architecture in ARCHITECTURES:
        directory = tmp_path / architecture
        theirs = tiny_model(architecture, fast.get_vocab_size(), bos_id, eos_id)
        theirs.save_pretrained(directory)
        wrapped.save_pretrained(directory)
        their_words, ours = their_tokenizer(directory), load(str(directory))
        prompt_ids = their_words(PROMPT).input_ids
        assert ours.tokenizer.encode(PROMPT) == prompt_ids
        new = theirs.generate(
            torch.tensor([prompt_ids]), attention_mask=torch.ones(1, len(prompt_ids)), do_sample=False,
            max_new_tokens=N_TOKENS, pad_token_id=0,
        )[0, len(prompt_ids) :].tolist()  # fmt: skip
        request = StoryRequest(PROMPT, Decoder((), Greedy()), seed=0, max_new_tokens=N_TOKENS)
        (story,) = (e.result for e in write(ours.session, ours.tokenizer, [request]) if isinstance(e, Ended))
        end = [eos_id] if story.finish_reason == "eos" else []
        assert [*story.token_ids, *end] == new
        before = their_words.decode(prompt_ids, skip_special_tokens=True)
        assert before + story.completion == their_words.decode([*prompt_ids, *new], skip_special_tokens=True)


def test_defaults_of_config_classes_are_those_of_transformers(tmp_path):
    from tinystory.checkpoint.tokens.special import _KNOWN_DEFAULTS, SpecialIds, with_class_defaults

    for model_type, ids in _KNOWN_DEFAULTS.items():
        config = transformers.CONFIG_MAPPING[model_type]()
        assert (config.bos_token_id, config.eos_token_id) == ids
    mistral = with_class_defaults(SpecialIds(), {"model_type": "mistral"}, 100)
    assert (mistral.bos_id, mistral.eos_ids) == (1, {2})
    assert with_class_defaults(SpecialIds(), {"model_type": "mistral"}, 1) == SpecialIds()
    assert with_class_defaults(SpecialIds(), {"model_type": "unheard of"}, 100) == SpecialIds()


# --- folders without a tokenizer.json ---

TEXTS = (
    "Once upon a time", " two  spaces\n\nand it's 3.14", "Zoë’s 🙂 naïve", "12345 plums", "I'M THEY'LL", "a\tb\r\nc",
    "", " ", "\n", "cafe\u0301", "<|im_end|> typed",
)  # fmt: skip


def folder(tmp_path, kind, model_type="gpt2", files=None, eos="<|im_end|>"):
    """Write a model with vocab.json and merges.txt, and the given files of a tokenizer."""
    fast = build(kind)
    model = json.loads(fast.to_str())["model"]
    n_tokens = len(model["vocab"])
    theirs = tiny_model(model_type, n_tokens + 8, None, fast.token_to_id(eos))
    theirs.save_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]))
    for name, content in (files or {}).items():
        (tmp_path / name).write_text(json.dumps(content))
    return fast


@pytest.mark.parametrize(
    ("kind", "model_type", "files"),
    [
        ("gpt2", "gpt2", {}),
        ("qwen2", "gpt2", {}),
        ("qwen2", "qwen2", {}),
        ("qwen2", "qwen2", {"tokenizer_config.json": {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>"}}),
        ("qwen2", "llama", {"tokenizer_config.json": {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>"}}),
        ("gpt2", "gpt2", {"tokenizer_config.json": {"eos_token": "<|endoftext|>", "add_prefix_space": True}}),
        ("gpt2", "llama", {"tokenizer_config.json": {"tokenizer_class": "GPT2TokenizerFast", "add_bos_token": True}}),
        ("gpt2", "gpt2", {"special_tokens_map.json": {"eos_token": "<|endoftext|>"}}),
        ("gpt2", "gpt2", {"added_tokens.json": {"<|im_start|>": 400}, "tokenizer_config.json": {}}),
        ("neox", "gpt_neox", {"tokenizer_config.json": {"tokenizer_class": "GPTNeoXTokenizer"}}),
    ],
)
def test_vocab_and_merges_are_used_as_in_transformers(tmp_path, kind, model_type, files):
    eos = KINDS[kind]["eos"]
    fast = folder(tmp_path, kind, model_type, files, eos)
    header = read_header(tmp_path)
    ours, theirs = load_tokenizer(header), transformers.AutoTokenizer.from_pretrained(tmp_path)
    end = fast.token_to_id(eos)
    assert ours.eos_ids == {end}
    assert ours.vocab_size <= header.vocab_size
    for text in TEXTS[:-1]:
        ids = theirs(text).input_ids
        assert ours.encode(text, bos=bool(ids)) == ids, text
        assert ours.detokenize(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert end not in ours.encode(TEXTS[-1], bos=False)


def test_word_pieces_in_vocab_txt(tmp_path):
    fast = build("wordpiece")
    tiny_model("gpt2", fast.get_vocab_size() + 8, 1, 2).save_pretrained(tmp_path)
    vocab = sorted(fast.get_vocab(), key=fast.token_to_id)
    (tmp_path / "vocab.txt").write_text("\n".join([*vocab, "[PAD]", "[MASK]"]))
    with pytest.raises(CheckpointError, match="not known how a text is cut"):
        load_tokenizer(read_header(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    ours, theirs = load_tokenizer(read_header(tmp_path)), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert ours.encode(PROMPT) == theirs(PROMPT).input_ids


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "no config names a tokenizer class"),
        ({"tokenizer_class": "AutoModel"}, "'AutoModel' is not a tokenizer class"),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, "'PreTrainedTokenizerFast' is not a tokenizer class"),
        ({"tokenizer_class": "LlamaTokenizer"}, "'LlamaTokenizer' is not a tokenizer class"),
        ({"tokenizer_class": ["GPT2Tokenizer"]}, "is not a tokenizer class"),
        ({"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.Own", None]}}, "code of its own"),
        ({"tokenizer_class": "GPT2Tokenizer", "added_tokens_decoder": {"1": 2}}, "cannot build the tokenizer"),
    ],
)  # fmt: skip
def test_what_nobody_knows_is_refused_in_one_line(tmp_path, config, words):
    folder(tmp_path, "gpt2", "llama", {"tokenizer_config.json": config} if config else {}, eos="<|endoftext|>")
    with pytest.raises(CheckpointError, match=words) as caught:
        load_tokenizer(read_header(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_folder_of_another_kind_is_a_tokenizer_for_a_new_run(tmp_path):
    files = {"tokenizer_config.json": {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>"}}
    fast = folder(tmp_path, "qwen2", "llama", files)
    found = find_tokenizer(str(tmp_path))
    assert found.encode(TEXTS[1], bos=False) == fast.encode(TEXTS[1]).ids
    assert found.eos_ids == {fast.token_to_id("<|im_end|>")}
    assert special_ids(read_header(tmp_path), found.fast).eos_from in ("config.json", "generation_config.json")
