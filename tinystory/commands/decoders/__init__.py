"""`tinystory decoders`: list and show decoders, write a new one, check one."""
