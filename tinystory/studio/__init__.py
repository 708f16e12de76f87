"""The desk of one writer: what a chat knows and can do, without a terminal."""
