"""Models with random weights. The speed of a model depends on its shape, and not on what it has learned."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tinystory.checkpoint.shipped import DEFAULT_MODEL
from tinystory.model.config import ModelConfig

if TYPE_CHECKING:
    from tinystory.model.transformer import Transformer

__all__ = ["SHAPES", "random_model", "save_random", "widened"]

SHAPES = {
    "8x384": ModelConfig.llama(4096, 8, 6, 384, 1024, 1024),
    "12x768": ModelConfig.llama(4096, 12, 12, 768, 1024, 2048),
    "tiny": ModelConfig.llama(2048, 2, 2, 64, 256, 128),
}
"""Shapes by name, layers × width. Each has room for the vocabulary of the shipped model; `tiny` is for tests."""

SEED = 7


def random_model(config: ModelConfig) -> "Transformer":
    """Return a model of a shape. Like weights of a real model, no weight is zero: zeros could be faster."""
    import torch

    from tinystory.model.transformer import Transformer

    model = Transformer(config)
    model.init_weights(SEED)
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.01)
    return model


def save_random(directory: Path, config: ModelConfig) -> None:
    """Write a checkpoint with random weights and the vocabulary of the shipped model."""
    from tinystory.checkpoint.save import save_checkpoint

    tokenizer_json = widened((DEFAULT_MODEL / "tokenizer.json").read_text(encoding="utf-8"), config.vocab_size)
    model = random_model(config)
    save_checkpoint(directory, model, tokenizer_json, bos_id=0, eos_ids={0}, provenance={"weights": "random"})


def widened(tokenizer_json: str, vocab_size: int) -> str:
    """Return a tokenizer.json that has been filled up to vocab_size with words that only a random model writes."""
    content = json.loads(tokenizer_json)
    vocabulary = content["model"]["vocab"]
    used = {*vocabulary.values(), *(token["id"] for token in content["added_tokens"])}
    vocabulary.update({f"Ġword{i}": i for i in range(vocab_size) if i not in used})
    return json.dumps(content, ensure_ascii=False)
