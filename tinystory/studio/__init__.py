"""What a chat knows and can do, without a terminal."""
