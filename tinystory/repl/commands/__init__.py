"""The slash commands: one function each. `/help` and completion are made from their table."""

from importlib import import_module

from tinystory.repl.commands.base import (
    COMMANDS,
    GROUPS,
    Argument,
    Command,
    DeskStory,
    Group,
    Reply,
    execute,
    find,
    meaning,
    split_line,
)

__all__ = [
    "COMMANDS", "GROUPS", "MODULES", "Argument", "Command", "DeskStory", "Group", "Reply", "execute",
    "find", "meaning", "split_line",
]  # fmt: skip

MODULES = tuple(module for group in GROUPS for module in group.modules)
"""The modules of commands, in the order of /help. Each enters its commands in the table when it is imported."""

for _module in MODULES:
    import_module(f"{__name__}.{_module}")
