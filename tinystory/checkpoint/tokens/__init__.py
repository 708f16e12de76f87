"""Read special ids, and vocabularies without a tokenizer.json, from the checkpoints of other people."""
