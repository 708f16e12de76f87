"""One module for each command, which is imported when the command is given.

A module has a frozen dataclass of options and `run(options) -> exit code`. Commands do not know each other.
"""
