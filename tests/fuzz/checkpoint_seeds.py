"""Small sound checkpoints: ours, and some of other architectures that transformers runs."""

import json

WORDS = ("<s>", "</s>", "once", "upon", "a", "time", "the", "cat")
N_TOKENS = 16
TOKENIZER = {
    "version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"},
    "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(WORDS)}, "unk_token": "a"},
}  # fmt: skip
SIZES = {
    "vocab_size": N_TOKENS, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 32, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
OTHERS = {
    "Bloom": {}, "GPTNeo": {"attention_types": [[["global", "local"], 1]]}, "GPTNeoX": {}, "Gemma2": {"head_dim": 8},
    "Mistral": {"num_key_value_heads": 1}, "Mixtral": {"num_key_value_heads": 1, "num_local_experts": 2}, "Mamba": {},
    "OPT": {"ffn_dim": 24, "word_embed_proj_dim": 16}, "Phi": {}, "Qwen2": {"num_key_value_heads": 1},
}  # fmt: skip


def write_own(folder):
    """Write checkpoints of GPT-2 and Llama, one of them in shards; return their folders."""
    import torch

    from tinystory.checkpoint.save import save_checkpoint
    from tinystory.model.config import ModelConfig
    from tinystory.model.transformer import Transformer

    torch.manual_seed(0)
    configs = {
        "gpt2": ModelConfig.gpt2(N_TOKENS, 1, 2, 16, 32), "llama": ModelConfig.llama(N_TOKENS, 1, 2, 16, 32, 24, 1),
        "shards": ModelConfig.llama(N_TOKENS, 1, 2, 16, 32, 24),
    }  # fmt: skip
    for name, config in configs.items():
        save_checkpoint(
            folder / name,
            Transformer(config),
            json.dumps(TOKENIZER),
            bos_id=0,
            eos_ids={1},
            provenance={"data": "none"},
        )
    _split(folder / "shards")
    return [folder / name for name in configs]


def _split(directory):
    """Write the weights of a checkpoint again, in two files with an index."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[:3], "model-00002-of-00002.safetensors": names[3:]}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, directory / file)
    index = {
        "metadata": {"total_size": 0},
        "weight_map": {name: file for file, part in shards.items() for name in part},
    }
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def write_others(folder):
    """Write checkpoints that only transformers can run; return their folders."""
    import torch
    import transformers

    torch.manual_seed(0)
    for family, more in OTHERS.items():
        model = getattr(transformers, f"{family}ForCausalLM")(getattr(transformers, f"{family}Config")(**SIZES | more))
        model.save_pretrained(folder / family)
        (folder / family / "tokenizer.json").write_text(json.dumps(TOKENIZER))
        (folder / family / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
        (folder / family / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return [folder / family for family in OTHERS]
