"""Compute one step of a model for a few tokens, in NumPy or in C."""
