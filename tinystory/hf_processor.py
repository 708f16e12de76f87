"""The door to our processors inside `generate` of transformers: the name of `tinystory.decoding.hf_processor`."""

from tinystory.decoding.hf_processor import as_logits_processor

__all__ = ["as_logits_processor"]
