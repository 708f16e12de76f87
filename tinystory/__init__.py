"""tinystory: a terminal story studio for small language models. Importing it loads nothing heavy."""

__version__ = "0.1.0"
