"""The built-in decoders, one file for each method.

`tinystory` finds them through entry points, like those of other people.
"""
