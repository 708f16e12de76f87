"""What searches share, for authors of decoders. Hands on `tinystory.decoding.searching`."""

from tinystory.decoding.searching import Rows, Telling, shared_length

__all__ = ["Rows", "Telling", "shared_length"]
