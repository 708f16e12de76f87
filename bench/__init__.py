"""The benchmark, `python -m bench`: it compares the speed of tinystory with that of other programs.

The package measures and shows figures. It may know everything; nothing in tinystory knows it. It is not installed.
"""
