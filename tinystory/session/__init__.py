"""Run a model behind four verbs: prefill, decode, reorder and rewind."""
