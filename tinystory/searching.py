"""The door for decoder authors to the help that searches share: the names of `tinystory.decoding.searching`."""

from tinystory.decoding.searching import Rows, Telling, shared_length

__all__ = ["Rows", "Telling", "shared_length"]
