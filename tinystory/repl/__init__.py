"""The story studio: a prompt loop in the terminal over the same engine as every other command."""
