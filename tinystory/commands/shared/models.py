"""The decoders and the model of a command, loaded as its options say. torch is imported only if it is needed."""

import importlib
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tinystory.commands.shared.groups import ModelOptions, PromptOptions
from tinystory.commands.shared.notices import warn
from tinystory.session.loading import LoadedModel, load_header, load_without_torch

if TYPE_CHECKING:
    from tinystory.checkpoint import CheckpointHeader
    from tinystory.decoding import Decoder

__all__ = ["import_torch_meanwhile", "load_to_write", "load_with_torch"]


def load_to_write(options: ModelOptions, name: str, header: "CheckpointHeader", *decoders: "Decoder") -> LoadedModel:
    """Load the model without torch if that is enough, because importing torch takes longer than a story."""
    if _needs_torch(options, header, decoders):
        return load_with_torch(options, name, header)
    model = load_without_torch(name, header, engine=options.engine)
    warn(options, model.warnings)
    return model


def load_with_torch(options: ModelOptions, name: str, header: "CheckpointHeader") -> LoadedModel:
    """Load the model with torch, in the dtype and on the device of the options."""

    def tell(warning: str) -> None:
        warn(options, (warning,))

    model = load_header(name, header, options.dtype, options.device, engine=options.engine, tell=tell)
    warn(options, model.warnings)
    return model


def import_torch_meanwhile(options: PromptOptions, header: "CheckpointHeader", *decoders: "Decoder") -> None:
    """Begin to import torch, if it is needed, while the prompt comes through a pipe."""
    if options.prompt is None and _needs_torch(options, header, decoders):
        # The thread is a daemon, so that an error ends the process without waiting for it.
        threading.Thread(target=importlib.import_module, args=("torch",), daemon=True).start()


def _needs_torch(options: ModelOptions, header: "CheckpointHeader", decoders: Sequence["Decoder"]) -> bool:
    from tinystory.session.numpy_session import suffices

    return not all(suffices(header, decoder, options.dtype, options.device) for decoder in decoders)
