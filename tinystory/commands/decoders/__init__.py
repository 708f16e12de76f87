"""`tinystory decoders`: list and show decoders (`show`), write a new one (`new`), check one (`check`)."""

from dataclasses import dataclass
from pathlib import Path

from tinystory.commands.shared.groups import DecoderFileOptions
from tinystory.errors import UsageError

__all__ = ["DecodersOptions", "run"]


@dataclass(frozen=True, kw_only=True)
class DecodersOptions(DecoderFileOptions):
    """The options of `tinystory decoders`.

    Attributes:
        name: the decoder to show, or `new`, or `check`; None lists all decoders.
        subject: the name of the new decoder, or the file, name or spec to check.
        kind: the kind of the new decoder: `processor`, `sampler` or `search`; None is a processor.
        out: where the new decoder is written; None is a file with its name.
        json: print JSON.
    """

    name: str | None = None
    subject: str | None = None
    kind: str | None = None
    out: Path | None = None
    json: bool = False


def run(options: DecodersOptions) -> int:
    """List decoders, show one, write one or check one, and return the exit code.

    Raises:
        UsageError: options do not go together, or a decoder is unknown.
    """
    # Each job imports only what it needs: a list of decoders needs no checkpoint.
    if options.name == "new":
        from tinystory.commands.decoders import new

        return new.run(options)
    if options.out or options.kind:
        raise UsageError("-o and --kind go with `tinystory decoders new NAME`")
    if options.name == "check":
        from tinystory.commands.decoders import check

        return check.run(options)
    from tinystory.commands.decoders import show

    return show.run(options)
