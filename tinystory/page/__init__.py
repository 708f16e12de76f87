"""A story as one HTML page: its tokens, what else was possible at each, and the inside of the model."""
