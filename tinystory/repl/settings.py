"""What a chat is started with."""

from dataclasses import dataclass
from pathlib import Path

from tinystory.settings import Setting

__all__ = ["ChatSettings"]


@dataclass(frozen=True)
class ChatSettings:
    """The command line's wishes for one chat.

    Attributes:
        model: a folder or hub id; None is the shipped model.
        decoder: the spec to begin with.
        seed: of every story; None draws one for each.
        max_tokens: at most so many new tokens at a time.
        stop: texts at which the model hands back to the writer.
        decoder_files: files with decoders of the user's own.
        device: where the model runs, as torch names it.
        dtype: of the computation.
        compiled: compute in code built for this processor.
        color: whether printed lines may be styled.
        quiet: print stories, answers and errors only.
        verbose: show tracebacks.
        prompt: written at once, as if it had been typed first.
        theme: the terminal's background, `dark` or `light`; `auto` finds out.
        keys: which keys edit a line, `emacs` or `vi`.
        resume: a session to go on with; an empty name is the latest, None is none.
        settings: every setting and where it comes from, as `/config` shows them.
    """

    model: str | None = None
    decoder: str = "sample 0.8"
    seed: int | None = None
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    decoder_files: tuple[Path, ...] = ()
    device: str = "cpu"
    dtype: str = "float32"
    compiled: bool = False
    color: bool = True
    quiet: bool = False
    verbose: bool = False
    prompt: str | None = None
    theme: str = "auto"
    keys: str = "emacs"
    resume: str | None = None
    settings: tuple[Setting, ...] = ()
