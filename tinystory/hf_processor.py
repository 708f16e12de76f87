"""Our processors inside another library's `generate`, for authors. Hands on `tinystory.decoding.hf_processor`."""

from tinystory.decoding.hf_processor import as_logits_processor

__all__ = ["as_logits_processor"]
