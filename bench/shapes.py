"""Models of chosen shapes with random weights, made on the fly: speed depends on the shape, not on what was learned."""

import json
from pathlib import Path

from tinystory.checkpoint.shipped import DEFAULT_MODEL
from tinystory.model.config import ModelConfig

__all__ = ["SHAPES", "save_random", "widened"]

SHAPES = {
    "8x384": ModelConfig.llama(4096, 8, 6, 384, 1024, 1024),
    "12x768": ModelConfig.llama(4096, 12, 12, 768, 1024, 2048),
    "tiny": ModelConfig.llama(2048, 2, 2, 64, 256, 128),
}
"""Layers × width; each has at least the vocabulary of the shipped model, whose words it uses. The last is for tests."""

SEED = 7


def save_random(directory: Path, config: ModelConfig) -> None:
    """Write a checkpoint of this shape. No weight is zero, so that everything is computed with ordinary numbers."""
    import torch

    from tinystory.checkpoint.save import save_checkpoint
    from tinystory.model.transformer import Transformer

    model = Transformer(config)
    model.init_weights(SEED)
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.01)
    tokenizer_json = widened((DEFAULT_MODEL / "tokenizer.json").read_text(encoding="utf-8"), config.vocab_size)
    save_checkpoint(directory, model, tokenizer_json, bos_id=0, eos_ids={0}, provenance={"weights": "random"})


def widened(tokenizer_json: str, vocab_size: int) -> str:
    """A byte-pair tokenizer.json with words that no text gives but a random model writes, up to vocab_size."""
    content = json.loads(tokenizer_json)
    vocabulary = content["model"]["vocab"]
    used = {*vocabulary.values(), *(token["id"] for token in content["added_tokens"])}
    vocabulary.update({f"Ġword{i}": i for i in range(vocab_size) if i not in used})
    return json.dumps(content, ensure_ascii=False)
