"""Stories and prompts from anywhere, selected, tokenised once, in batches."""
