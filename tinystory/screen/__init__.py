"""Text laid out for a terminal: cells, colours, lines. Knows no story and no model."""
