"""Text laid out for a terminal: cells, colours, lines."""
