"""The decoders that a command may use: the installed ones and those in the files of the user."""

from tinystory.commands.shared.groups import DecoderFileOptions
from tinystory.commands.shared.notices import warn
from tinystory.decoding.plugins import Registry, discover

__all__ = ["find_decoders"]


def find_decoders(options: DecoderFileOptions) -> Registry:
    """Return all decoders: the installed ones and those in the files of the user. Print a line for each broken one."""
    registry = discover(options.decoder_file)
    warn(options, registry.warnings)
    return registry
