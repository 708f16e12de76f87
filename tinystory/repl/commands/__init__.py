"""The slash commands: a function each, entered in a table by `@command`, from which `/help` and completion come."""

# Each module enters its commands when it is imported; /help lists them in this order.
from tinystory.repl.commands import writing, tree, decoding, seeing, comparing, keeping, system  # noqa: I001
from tinystory.repl.commands.base import COMMANDS, Argument, Command, Reply, execute, find, split_line

__all__ = [
    "COMMANDS", "Argument", "Command", "Reply", "comparing", "decoding", "execute", "find", "keeping", "seeing",
    "split_line", "system", "tree", "writing",
]  # fmt: skip
