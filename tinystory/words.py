"""The door for decoder authors to words in a text: names of `tinystory.text.words`."""

from tinystory.text.words import HALF, Watch, Watched, begins_inside_word, check_words, has_word, whole

__all__ = ["HALF", "Watch", "Watched", "begins_inside_word", "check_words", "has_word", "whole"]
