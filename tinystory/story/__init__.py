"""The stories of a session and how they were written: the tree, its file, the trace of each token, and replay."""
