"""The documentation site and the notebooks that are part of it."""
