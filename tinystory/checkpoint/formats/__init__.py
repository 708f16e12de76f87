"""Turn models in other formats into checkpoints."""
