"""Figures of models and of texts."""
