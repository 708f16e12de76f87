"""Tiny tokenizers of twelve kinds, as other people's models have them, and tiny random models of transformers."""

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

__all__ = ["KINDS", "build", "tiny_model"]

_STORY = """Once upon a time, there was a little girl named Lily. She loved to play in the park with her dog, Max.
One day, they found a big, red ball! "Can we keep it?" asked Lily. Her mom said, "Yes, but don't lose it."
Zoë's café cost 3.14 – and they were happy… They'd 12 apples, 2048 plums and I'M tired.
"""
_VOCAB_SIZE = 400
_LLAMA3_CUT = r" ?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"
"""Numbers are cut after three digits, as in Llama 3."""

KINDS = {
    "gpt2": {"bos": "<|endoftext|>", "eos": "<|endoftext|>"},
    "llama3": {"bos": "<|begin_of_text|>", "eos": "<|eot_id|>", "adds": ("bos",)},
    "qwen2": {"bos": None, "eos": "<|im_end|>"},
    "llama2": {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "adds": ("bos",)},
    "unigram": {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "adds": ("eos",)},
    "gemma": {"bos": "<bos>", "eos": "<eos>", "unk": "<unk>", "adds": ("bos",)},
    "wordpiece": {"bos": "[CLS]", "eos": "[SEP]", "unk": "[UNK]", "adds": ("bos", "eos")},
    "wordlevel": {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "adds": ("bos",)},
    "codellama": {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "adds": ("bos",)},
    "mistral": {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "adds": ("bos",)},
    "neox": {"bos": "<|endoftext|>", "eos": "<|endoftext|>"},
    "opt": {"bos": "</s>", "eos": "</s>", "adds": ("bos",)},
}
"""The special tokens of each kind, and those that its template adds to every text."""


def build(kind: str) -> Tokenizer:
    """Return a new tokenizer of one of `KINDS`, trained on a few sentences."""
    names = KINDS[kind]
    special = list(dict.fromkeys(names[key] for key in ("unk", "bos", "eos") if names.get(key)))
    builders = {"unigram": _unigram, "wordpiece": _wordpiece, "wordlevel": _wordlevel}
    builder = builders.get(kind) or (_sentencepiece if "unk" in names else _byte_level)
    tokenizer = builder(kind, special)
    parts = ["$A"]
    if "bos" in names.get("adds", ()):
        parts.insert(0, names["bos"])
    if "eos" in names.get("adds", ()):
        parts.append(names["eos"])
    if len(parts) > 1:
        added = [(token, tokenizer.token_to_id(token)) for token in parts if token != "$A"]
        tokenizer.post_processor = processors.TemplateProcessing(" ".join(parts), special_tokens=added)
    return tokenizer


def _byte_level(kind, special):
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    tokenizer = Tokenizer(models.BPE())
    cut = {"llama3": _LLAMA3_CUT, "qwen2": PRETOKENIZE_REGEX}.get(kind)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if kind in ("qwen2", "neox"):
        tokenizer.normalizer = normalizers.NFC()
    if cut:
        whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(cut), "isolated"), whole])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([_STORY], trainers.BpeTrainer(
        vocab_size=_VOCAB_SIZE, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    ))  # fmt: skip
    return tokenizer


def _sentencepiece(kind, special):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    strip = [decoders.Strip(" ", 1, 0)]
    if kind == "llama2":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    elif kind == "gemma":
        tokenizer.normalizer, strip = normalizers.Replace(" ", "▁"), []
    else:
        scheme = "never" if kind == "codellama" else "first"
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False)
        strip = [] if kind == "codellama" else strip
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer.train_from_iterator([_STORY], trainers.BpeTrainer(
        vocab_size=_VOCAB_SIZE, special_tokens=[*special, *byte_tokens], show_progress=False, max_token_length=9
    ))  # fmt: skip
    return _without_added(tokenizer, byte_tokens)


def _unigram(kind, special):
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace("▁", prepend_scheme="always")
    tokenizer.train_from_iterator([_STORY], trainers.UnigramTrainer(
        vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False
    ))  # fmt: skip
    return tokenizer


def _wordpiece(kind, special):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator([_STORY], trainers.WordPieceTrainer(
        vocab_size=200, special_tokens=special, show_progress=False
    ))  # fmt: skip
    return tokenizer


def _wordlevel(kind, special):
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator([_STORY], trainers.WordLevelTrainer(special_tokens=special, show_progress=False))
    return tokenizer


def _without_added(tokenizer, tokens):
    """Return a tokenizer in which these tokens are ordinary ones, as byte tokens are in SentencePiece."""
    import json

    document = json.loads(tokenizer.to_str())
    document["added_tokens"] = [token for token in document["added_tokens"] if token["content"] not in tokens]
    return Tokenizer.from_str(json.dumps(document))


def tiny_model(architecture: str, vocab_size: int, bos_id: int | None, eos_id: int | None, seed: int = 0):
    """Return a random model of transformers with two layers of width 32, in evaluation mode."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    sizes = (
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
        if architecture == "gpt2"
        else {
            "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
            "max_position_embeddings": 128,
        } | ({} if architecture == "gpt_neox" else {"num_key_value_heads": 2})
    )  # fmt: skip
    config = AutoConfig.for_model(
        architecture, vocab_size=vocab_size, bos_token_id=bos_id, eos_token_id=eos_id, initializer_range=0.3, **sizes
    )
    return AutoModelForCausalLM.from_config(config).eval()
