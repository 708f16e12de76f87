"""Measure models and texts. Does not know who shows the figures."""
