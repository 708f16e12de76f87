"""The network and nothing else: its shape, the Transformer, its loss."""
