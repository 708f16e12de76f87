"""The benchmark, `python -m bench`: how fast tinystory is, beside other programs and beside itself.

The package measures and shows figures. It may know everything; nothing in tinystory knows it. It is not installed.
"""
