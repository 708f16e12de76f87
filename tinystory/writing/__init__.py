"""From decoder events to text: stop texts, healing, batches, files of finished stories."""
