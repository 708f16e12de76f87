"""The decoder study: a grid of decoders over many prompts, measured against real stories."""
