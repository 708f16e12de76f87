"""Read files and texts that may come from strangers, run their code, and write files as a whole."""
