"""What was written and how: the story tree, its file, the trace of each token, and replay."""
