"""One chat at a terminal: the input line, its slash commands, and how stories are shown."""
