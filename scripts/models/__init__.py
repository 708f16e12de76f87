"""The comparison of each architecture of transformers with the sessions of this project."""
