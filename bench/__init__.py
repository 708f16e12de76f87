"""How fast tinystory is, beside others and beside itself: `python -m bench`."""
