"""Read files and texts that may come from strangers, and write files as a whole."""
