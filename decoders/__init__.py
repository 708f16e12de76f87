"""The built-in decoders, one file each; `tinystory` finds them through entry points, like anybody else's."""
