"""A rich console that leaves a closed pipe to the command line, which ends silently."""

from rich.console import Console

__all__ = ["PipeConsole"]


class PipeConsole(Console):
    """Rich's own would end the program with exit code 1."""

    def on_broken_pipe(self) -> None:
        """Called while a BrokenPipeError is handled; raise it again."""
        raise BrokenPipeError
