"""Compute the network: its shape, the Transformer, its loss, and the device it runs on."""
