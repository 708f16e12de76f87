"""Read stories and prompts, select and tokenise them, and make batches. Knows no model and no decoder."""
