"""XXX-DOC."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinystory.checkpoint import hf_layout
from tinystory.checkpoint.header import STORED_DTYPES, CheckpointHeader, check_doubled_head, name_in_file
from tinystory.checkpoint.safetensors_header import TensorEntry
from tinystory.errors import CheckpointError, TinystoryError, UsageError
from tinystory.model.config import ModelConfig
from tinystory.safe.reading import shown

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from tinystory.model.transformer import Transformer

__all__ = ["load_model", "meta_model"]


_LOADABLE_DTYPES = ("float32", "bfloat16", "float16", "float64")


def load_model(header: CheckpointHeader, dtype: str = "float32", device: str = "cpu") -> "Transformer":
    """The model of a checkpoint, in eval mode and without gradients (training turns both on again).

    Peak memory is the weights plus the largest single tensor.

    Args:
        header: of a checkpoint of our architectures.
        dtype: of the parameters: float32, bfloat16, float16 or float64.
        device: as torch writes it, like "cpu" or "cuda:0".

    Raises:
        CheckpointError: not our architecture, weights that are not finite, or files that changed meanwhile.
        UsageError: an unknown dtype, or a device that is not there.
        TinystoryError: not enough memory.
    """
    config = header.config
    if config is None:
        raise CheckpointError(
            f"{header.directory} is a {shown(header.hf_config.get('model_type'))} model, which only transformers runs"
        )
    if dtype not in _LOADABLE_DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}; choose one of {', '.join(_LOADABLE_DTYPES)}")
    _check_memory(config.n_parameters * {"float64": 8, "float32": 4}.get(dtype, 2), device)
    import torch

    target_dtype, target = getattr(torch, dtype), _device(device)
    model = meta_model(config)
    prefix = hf_layout.name_prefix(config, header.tensors)
    state: dict[str, Tensor] = {}
    try:
        for layout in hf_layout.tensor_layout(config):
            entry = header.tensors[name_in_file(layout.name, prefix, config)]
            tensor = _finite(header.directory, layout.name, _read(header.directory, entry), target_dtype)
            for name, parameter in hf_layout.unpack(layout, tensor).items():
                state[name] = parameter.to(target)
            del tensor
    except torch.OutOfMemoryError as error:
        raise TinystoryError(f"the model does not fit into the memory of {device}; try --dtype bfloat16") from error
    if config.tied_head:
        check_doubled_head(header, prefix)
        state["head.weight"] = state["embed.weight"]
    model.load_state_dict(state, assign=True)
    if config.tied_head:
        model.head.weight = model.embed.weight
    return model.requires_grad_(False).eval()


def meta_model(config: ModelConfig) -> "Transformer":
    """A model of shapes without values, to be filled by `load_state_dict(..., assign=True)`."""
    import torch
    from torch.overrides import TorchFunctionMode

    from tinystory.model.transformer import Transformer

    class SkipRandomInit(TorchFunctionMode):
        """Without it, drawing an `Embedding` that nobody will see imports 800 modules: a second, 70 MB."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            return kwargs["tensor"] if func is torch.nn.init.normal_ else func(*args, **kwargs)

    with torch.device("meta"), SkipRandomInit():
        return Transformer(config)


def _check_memory(n_bytes: int, device: str) -> None:
    """Refuse at once what the machine's memory cannot hold; a swapping machine is of no use to anybody."""
    try:
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return  # not a POSIX system
    if device == "cpu" and 0 < available < n_bytes:
        raise TinystoryError(
            f"the model needs {n_bytes / 1e9:.1f} GB, this machine has {available / 1e9:.1f} GB; try --dtype bfloat16"
        )


def _device(name: str) -> "torch.device":
    import torch

    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # also "not compiled with CUDA"
        raise UsageError(f"the device {name!r} is not available; --device cpu always is") from error
    return device


def _read(directory: Path, entry: TensorEntry) -> "Tensor":
    """Read one tensor.

    A plain read into its own memory, not a memory map: a mapped file that somebody truncates kills the process
    with SIGBUS, one that somebody overwrites changes the model, and a mapped and converted tensor counts twice.
    """
    import torch

    tensor = torch.empty(entry.shape, dtype=getattr(torch, STORED_DTYPES[entry.dtype]))
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
    """The tensor in the dtype asked for, if all its values are finite there."""
    import torch

    # aminmax carries NaN along and, unlike isfinite, needs no memory
    if not all(torch.isfinite(bound) for bound in torch.aminmax(tensor)):
        raise CheckpointError(f"{directory}: the tensor {name} holds NaN or infinity; the training went astray")
    converted = tensor.to(dtype)
    if converted is not tensor and not all(torch.isfinite(bound) for bound in torch.aminmax(converted)):
        raise CheckpointError(f"{directory}: the tensor {name} does not fit into {dtype}; load it as float32")
    return converted
