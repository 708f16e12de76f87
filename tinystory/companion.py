"""The door for decoder authors to a second model: the names of `tinystory.decoding.companion`."""

from tinystory.decoding.companion import Companion

__all__ = ["Companion"]
