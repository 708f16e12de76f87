"""One run: configuration, step, loop, folder, ranks, pictures."""
