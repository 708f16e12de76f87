"""Models in foreign formats, made into checkpoints."""
