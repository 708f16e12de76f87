"""The slash commands: one function each. `/help` and completion are made from their table."""

from importlib import import_module

from tinystory.repl.commands.base import COMMANDS, Argument, Command, DeskStory, Reply, execute, find, split_line

__all__ = [
    "COMMANDS", "MODULES", "Argument", "Command", "DeskStory", "Reply", "execute", "find", "split_line",
]  # fmt: skip

MODULES = ("writing", "tree", "decoding", "seeing", "funnel", "inside", "surprise", "comparing", "keeping", "system")
"""The modules of commands, in the order of /help. Each enters its commands in the table when it is imported."""

for _module in MODULES:
    import_module(f"{__name__}.{_module}")
