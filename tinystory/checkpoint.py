"""A checkpoint directory: what its files say, checked before torch is imported, and the model in it.

Nothing here unpickles or runs code from a checkpoint. The layout is Hugging Face's, see `hf_layout`.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from tinystory import hf_layout
from tinystory.checkpoint_directory import locate, resolve
from tinystory.checkpoint_save import save_checkpoint
from tinystory.config import ModelConfig
from tinystory.errors import CheckpointError, TinystoryError, UsageError
from tinystory.model_hash import file_stamp, model_hash
from tinystory.safetensors_header import TensorEntry, read_tensors
from tinystory.untrusted import read_json_object, shown
from tinystory.vocabulary import read_vocabulary

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from tinystory.model import Transformer

__all__ = [
    "CheckpointHeader", "TensorEntry", "check_doubled_head", "load_model", "locate", "model_hash", "name_in_file",
    "read_header", "save_checkpoint",
]  # fmt: skip

_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_LOADABLE_DTYPES = ("float32", "bfloat16", "float16", "float64")
_HEAD = "lm_head.weight"
_BLOCK_BYTES = 2**20


@dataclass(frozen=True)
class CheckpointHeader:
    """Everything about a checkpoint but the values of its weights; one that exists has been checked.

    Attributes:
        directory: where the files are, links followed.
        config: None where only transformers knows the architecture; its tensors are then unchecked but for
            their place in the files.
        hf_config: the content of config.json.
        dtype: of most weights on disk: float32, bfloat16 or float16 (for a model not ours, perhaps another
            safetensors name).
        tensors: Hugging Face's names -> file, dtype, shape and byte offsets.
        bos_id: the token that a story begins with, if any.
        eos_ids: the tokens that end one.
        provenance: the content of tinystory.json, empty where there is none.
        stamp: tells whether the files are still those that were read.
    """

    directory: Path
    config: ModelConfig | None
    hf_config: Mapping[str, Any]
    dtype: str
    tensors: Mapping[str, TensorEntry]
    bos_id: int | None
    eos_ids: frozenset[int]
    provenance: Mapping[str, Any]
    stamp: str = ""


def read_header(directory: Path) -> CheckpointHeader:
    """Read and check a checkpoint but for its weights' values; imports neither torch nor transformers.

    Args:
        directory: a checkpoint, or the checkpoint folder of a training run, whose `latest` is read.

    Raises:
        CheckpointError: anything is missing, damaged, out of range or does not fit together.
    """
    directory = resolve(directory)
    hf_config = read_json_object(directory / "config.json")
    config = hf_layout.from_hf_config(hf_config)
    tensors = read_tensors(directory)
    stamp = file_stamp(directory)
    if config is not None:
        _check_tensors(directory, config, tensors)
        vocab_size: int | None = config.vocab_size
    else:
        stated = hf_config.get("vocab_size")
        vocab_size = stated if type(stated) is int and stated > 0 else None
    read_vocabulary(directory, vocab_size)
    generation_config = _read_optional(directory / "generation_config.json")
    bos_id, eos_ids = hf_layout.token_ids(hf_config, generation_config, vocab_size)
    provenance = _read_optional(directory / "tinystory.json")
    dtype = _main_dtype(tensors)
    return CheckpointHeader(directory, config, hf_config, dtype, tensors, bos_id, eos_ids, provenance, stamp)


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

    from tinystory.model import Transformer

    class SkipRandomInit(TorchFunctionMode):
        """Without it, drawing an `Embedding` that nobody will see imports 800 modules: a second, 70 MB."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            return kwargs["tensor"] if func is torch.nn.init.normal_ else func(*args, **kwargs)

    with torch.device("meta"), SkipRandomInit():
        return Transformer(config)


# --- checks without torch ---


def _check_tensors(directory: Path, config: ModelConfig, tensors: Mapping[str, TensorEntry]) -> None:
    """Every expected tensor is there with its shape and a float dtype, and no other."""
    prefix = hf_layout.name_prefix(config, tensors)
    expected = {name_in_file(layout.name, prefix, config): layout.shape for layout in hf_layout.tensor_layout(config)}
    if config.tied_head and _HEAD in tensors:
        expected[_HEAD] = (config.vocab_size, config.d_model)
    for name, shape in expected.items():
        entry = tensors.get(name)
        if entry is None:
            raise CheckpointError(f"{directory}: the weights lack the tensor {name}, {shown(shape)}")
        where = f"{directory / entry.file}: the tensor {name}"
        if entry.shape != shape:
            raise CheckpointError(f"{where} has the shape {shown(entry.shape)}; config.json makes it {shown(shape)}")
        if entry.dtype not in _DTYPES:
            raise CheckpointError(f"{where} is {entry.dtype}; weights must be F32, BF16 or F16")
    for name in tensors:
        if name not in expected and not hf_layout.is_known_buffer(config, name):
            raise CheckpointError(
                f"{directory}: the weights have an unknown tensor {shown(name)}; "
                f"config.json describes a {config.family} model without it"
            )


def name_in_file(full_name: str, prefix: str, config: ModelConfig) -> str:
    """A tensor's name in a file, from transformers' full name and the prefix that the file has."""
    return full_name if prefix or full_name == _HEAD else full_name.split(".", 1)[1]


def _main_dtype(tensors: Mapping[str, TensorEntry]) -> str:
    n_bytes: dict[str, int] = {}
    for entry in tensors.values():
        n_bytes[entry.dtype] = n_bytes.get(entry.dtype, 0) + entry.end - entry.start
    largest = max(n_bytes, key=n_bytes.__getitem__, default="F32")
    return _DTYPES.get(largest, largest)


def _read_optional(path: Path) -> dict[str, Any]:
    return read_json_object(path) if os.path.lexists(path) else {}


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


# --- values ---


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

    tensor = torch.empty(entry.shape, dtype=getattr(torch, _DTYPES[entry.dtype]))
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


def check_doubled_head(header: CheckpointHeader, prefix: str) -> None:
    """A tied model may store its head a second time, but it must be the same: transformers would use both."""
    if _HEAD not in header.tensors or header.config is None:
        return
    embed_name = hf_layout.tensor_layout(header.config)[0].name
    head, embed = header.tensors[_HEAD], header.tensors[name_in_file(embed_name, prefix, header.config)]
    with (
        (header.directory / head.file).open("rb") as head_file,
        (header.directory / embed.file).open("rb") as embed_file,
    ):
        if not _same_bytes(head_file, head, embed_file, embed):
            raise CheckpointError(
                f"{header.directory}: config.json ties head and embedding, but {_HEAD} and {embed_name} differ"
            )


def _same_bytes(file: BinaryIO, entry: TensorEntry, other_file: BinaryIO, other: TensorEntry) -> bool:
    n_left = entry.end - entry.start
    if n_left != other.end - other.start or entry.dtype != other.dtype:
        return False
    file.seek(entry.start)
    other_file.seek(other.start)
    while n_left:
        n = min(n_left, _BLOCK_BYTES)
        if file.read(n) != other_file.read(n):
            return False
        n_left -= n
    return True
