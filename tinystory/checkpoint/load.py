"""Read the weights of a checked checkpoint into a `Transformer`.

It imports torch only when a function is called. It knows no session and no decoder.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinystory.checkpoint import hf_layout
from tinystory.checkpoint.header import CheckpointHeader
from tinystory.checkpoint.safetensors_header import TensorEntry
from tinystory.dtypes import DTYPES, LOADED_DTYPES, dtype_of_safetensors
from tinystory.errors import CheckpointError, TinystoryError, UsageError
from tinystory.model.config import ModelConfig
from tinystory.model.device import usable_device
from tinystory.safe.reading import shown

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from tinystory.model.transformer import Transformer

__all__ = ["load_model", "meta_model"]


def load_model(header: CheckpointHeader, dtype: str = "float32", device: str = "cpu") -> "Transformer":
    """Load the model of a checkpoint, in eval mode and without gradients; training turns both on again.

    The peak of memory is the weights plus the largest single tensor.

    Args:
        header: the header of a checkpoint of the GPT-2 or Llama family.
        dtype: the dtype of the parameters: float32, bfloat16, float16 or float64.
        device: the device as torch writes it, like "cpu" or "cuda:0".

    Raises:
        CheckpointError: only transformers runs this architecture, weights are not finite, or a file has changed
            since the header was read.
        UsageError: the dtype is unknown, or the device is not available.
        TinystoryError: there is not enough memory.
    """
    config = header.config
    if config is None:
        raise CheckpointError(
            f"{header.directory} is a {shown(header.hf_config.get('model_type'))} model, which only transformers runs"
        )
    if dtype not in LOADED_DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}; choose one of {', '.join(LOADED_DTYPES)}")
    check_memory(config.n_parameters * DTYPES[dtype].n_bytes, device)
    import torch

    target_dtype, target = getattr(torch, dtype), usable_device(device)
    model = meta_model(config)
    prefix = hf_layout.name_prefix(config, header.tensors)
    state: dict[str, Tensor] = {}
    try:
        for layout in hf_layout.tensor_layout(config):
            entry = header.tensors[hf_layout.name_in_file(layout.name, prefix, config)]
            tensor = _finite(header.directory, layout.name, _read(header.directory, entry), target_dtype)
            for name, parameter in hf_layout.unpack(layout, tensor).items():
                state[name] = parameter.to(target)
            del tensor
    except torch.OutOfMemoryError as error:
        raise TinystoryError(f"the model does not fit into the memory of {device}; try --dtype bfloat16") from error
    if config.tied_head:
        state["head.weight"] = state["embed.weight"]
    model.load_state_dict(state, assign=True)
    if config.tied_head:
        model.head.weight = model.embed.weight
    return model.requires_grad_(False).eval()


def meta_model(config: ModelConfig) -> "Transformer":
    """Return a model whose parameters have shapes but no values, for `load_state_dict(..., assign=True)`."""
    import torch
    from torch.overrides import TorchFunctionMode

    from tinystory.model.transformer import Transformer

    class SkipRandomInit(TorchFunctionMode):
        """A mode that draws no random weights: on the meta device that would import 800 modules (1 s, 70 MB)."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            return kwargs["tensor"] if func is torch.nn.init.normal_ else func(*args, **kwargs)

    with torch.device("meta"), SkipRandomInit():
        return Transformer(config)


def check_memory(n_bytes: int, device: str) -> None:
    """Refuse a model that is larger than this computer's memory, before loading it makes the computer swap."""
    try:
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return  # not a POSIX system
    if device == "cpu" and 0 < available < n_bytes:
        raise TinystoryError(
            f"the model needs {n_bytes / 1e9:.1f} GB, this machine has {available / 1e9:.1f} GB; try --dtype bfloat16"
        )


def _read(directory: Path, entry: TensorEntry) -> "Tensor":
    """Read one tensor with a plain read into memory of its own.

    A memory map would be dangerous: a mapped file that somebody truncates kills the process with SIGBUS, and one
    that somebody overwrites changes the model. A tensor that is mapped and then converted also needs twice the memory.
    """
    import torch

    dtype = dtype_of_safetensors(entry.dtype)
    assert dtype is not None  # `read_header` refuses other dtypes
    tensor = torch.empty(entry.shape, dtype=getattr(torch, dtype))
    try:
        with (directory / entry.file).open("rb") as file:
            file.seek(entry.start)
            n_read = file.readinto(tensor.flatten().view(torch.uint8).numpy().data)
    except OSError as error:
        raise CheckpointError(f"cannot read {directory / entry.file}: {error.strerror}") from error
    if n_read != entry.end - entry.start:
        raise CheckpointError(f"{directory / entry.file} became shorter while it was read; try again")
    return tensor


def _finite(directory: Path, name: str, tensor: "Tensor", dtype: "torch.dtype") -> "Tensor":
    """Convert a tensor, and check that its values are finite both before and after."""
    import torch

    # aminmax propagates NaN and, unlike isfinite, needs no memory.
    if not all(torch.isfinite(bound) for bound in torch.aminmax(tensor)):
        raise CheckpointError(f"{directory}: the tensor {name} holds NaN or infinity; the training failed")
    converted = tensor.to(dtype)
    if converted is not tensor and not all(torch.isfinite(bound) for bound in torch.aminmax(converted)):
        raise CheckpointError(f"{directory}: the tensor {name} does not fit into {dtype}; load it as float32")
    return converted
