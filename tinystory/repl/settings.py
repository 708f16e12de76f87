"""The settings with which a chat is started."""

from dataclasses import dataclass
from pathlib import Path

from tinystory.settings import Setting

__all__ = ["ChatSettings"]


@dataclass(frozen=True)
class ChatSettings:
    """The settings of one chat, from the command line.

    Attributes:
        model: a folder or a hub id; None is the shipped model.
        decoder: the spec of the first decoder.
        seed: the seed of every story; None draws one for each story.
        max_tokens: the largest number of new tokens in one turn.
        stop: texts that end a turn.
        decoder_files: files with the user's own stages.
        device: the device of the model, as torch names it.
        dtype: the number format of the computation.
        engine: what computes Llama and GPT-2 models on the CPU, `compiled` or `numpy`.
        color: whether printed lines may be styled.
        quiet: print only stories, replies and errors.
        verbose: show tracebacks.
        prompt: the first prompt, as if it had been typed.
        theme: the background of the terminal, `dark` or `light`; `auto` asks the terminal.
        keys: the keys of the input line, `emacs` or `vi`.
        resume: the name of a session to go on with. An empty name is the latest session; None begins a new one.
        settings: every setting and its origin, as `/config` shows them.
    """

    model: str | None = None
    decoder: str = "sample 0.8"
    seed: int | None = None
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    decoder_files: tuple[Path, ...] = ()
    device: str = "cpu"
    dtype: str = "float32"
    engine: str = "compiled"
    color: bool = True
    quiet: bool = False
    verbose: bool = False
    prompt: str | None = None
    theme: str = "auto"
    keys: str = "emacs"
    resume: str | None = None
    settings: tuple[Setting, ...] = ()
