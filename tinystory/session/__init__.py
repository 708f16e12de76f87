"""A model behind four verbs: prefill, decode, reorder, rewind."""
