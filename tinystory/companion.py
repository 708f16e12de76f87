"""A second model that looks at the same story, for authors of decoders. Hands on `tinystory.decoding.companion`."""

from tinystory.decoding.companion import Companion

__all__ = ["Companion"]
