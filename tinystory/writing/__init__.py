"""Turn decoder events into text: stop texts, healing, batches, and files of finished stories."""
