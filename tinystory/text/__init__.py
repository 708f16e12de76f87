"""Text and token ids: the tokenizer, words, where sentences end."""
