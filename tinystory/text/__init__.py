"""Text and token ids: the tokenizer, whole words in a text, and the ends of sentences. It knows no model."""
