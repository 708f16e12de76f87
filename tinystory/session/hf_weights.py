"""Load a model of transformers from a directory, and make sure that each of its weights comes from the files.

transformers fills a weight that the files lack with random numbers, and says so only in a warning. This module checks
the config and the names before memory is taken, and the report of transformers after the load. It knows no session.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from tinystory.checkpoint import CheckpointHeader
from tinystory.checkpoint.header import lacking_tensors, warnings_about_unused
from tinystory.checkpoint.load import check_memory
from tinystory.errors import CheckpointError
from tinystory.safe.reading import shown
from tinystory.session.hf_config import safe_config

__all__ = ["load_hf_model"]

_LAYER_COUNTS = {
    "decoder_layers", "encoder_layers", "n_layer", "n_layers", "num_decoder_layers", "num_encoder_layers",
    "num_hidden_layers", "num_layers",
}  # fmt: skip
_MOST_LABELS = 100_000
"""transformers makes a name for each label, though a model that writes has none."""
_MAYBE_ZERO = {"decoder_layers", "encoder_layers"}
"""An architecture with two stacks may be stored with one of them only."""

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_LAST_NUMBER = re.compile(r"(.*\.\d+\..*\.)(\d+)(\..*)")

_PARAMETERS_PER_TENSOR = 8
_ELEMENTS_PER_BYTE = 16
"""While a model is built, it may have so many times what the file has: tied weights count often, and a tensor may be
split, or quantised to a few bits. The bounds only have to stop a build that would not end."""


def load_hf_model(header: CheckpointHeader, dtype: str) -> tuple[Any, tuple[str, ...]]:
    """Load a causal language model without running code from its directory and without pickled weights.

    Args:
        header: the header of the checkpoint, as from `read_header`.
        dtype: the dtype of the computation, as torch calls it.

    Returns:
        The model on the CPU, and warnings about tensors of the files that the model does not use.

    Raises:
        CheckpointError: the weights lack tensors of the model, or have others of their shape, or further layers; or
            the type of the model cannot write.
        TinystoryError: there is not enough memory.
        Exception: of any kind, if transformers does not know or cannot run the model.
    """
    from transformers import AutoModelForCausalLM

    directory = header.directory
    _check_counts(header, header.hf_config)
    factory: Any = AutoModelForCausalLM
    config = safe_config(header)
    if type(config) not in factory._model_mapping:
        kind = shown(config.model_type)
        raise CheckpointError(f"{directory}: transformers has no causal language model of the type {kind}")
    with torch.device("meta"), _bounded_build(header):
        plan = factory.from_config(config, trust_remote_code=False)
    _check_plan(header, plan, dtype)
    try:
        model, report = factory.from_pretrained(
            directory,
            config=config,
            dtype=getattr(torch, dtype),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are refused here, by name
            output_loading_info=True,
        )
    except Exception as error:
        if gaps := _gaps(header.tensors):  # experts are joined to one tensor, which fails if one is missing
            raise lacking_tensors(directory, gaps) from error
        raise
    if report["mismatched_keys"] and (gaps := _gaps(header.tensors)):
        raise lacking_tensors(directory, gaps)
    for name, shape, expected in sorted(report["mismatched_keys"]):
        raise _misshapen(header, name, shape, expected)
    if report["missing_keys"]:
        raise lacking_tensors(directory, report["missing_keys"])
    for problem in report["error_msgs"]:
        raise CheckpointError(f"{directory}: {problem}")
    return model, warnings_about_unused(directory, report["unexpected_keys"], model.state_dict())


def _gaps(names: Iterable[str]) -> list[str]:
    """Return the names of experts' tensors that one layer lacks and others have."""
    numbers: dict[str, set[str]] = {}  # by what comes before the number of an expert, for all layers together
    found: dict[str, dict[str, set[str]]] = {}  # by what comes before it in one layer, and what comes behind it
    for name in names:
        if "expert" in name and (match := _LAST_NUMBER.fullmatch(name)):
            before, number, behind = match.groups()
            numbers.setdefault(_NUMBER.sub("#", before), set()).add(number)
            found.setdefault(before, {}).setdefault(behind, set()).add(number)
    return [
        before + number + behind
        for before, numbers_behind in found.items()
        for behind, present in numbers_behind.items()
        for number in sorted(numbers[_NUMBER.sub("#", before)] - present)
    ]


def _check_counts(header: CheckpointHeader, config: Mapping[str, Any]) -> None:
    """Check the numbers of layers and labels before a config is built: a config makes lists as long as they are.

    Raises:
        CheckpointError: a number of layers is below 1, or larger than the number of tensors in the files; or there are
            too many labels.
    """
    for key, value in config.items():
        if isinstance(value, dict):
            _check_counts(header, value)
        elif key == "num_labels" and isinstance(value, int) and value > _MOST_LABELS:
            raise CheckpointError(
                f"{header.directory}: config.json: num_labels is {shown(value)}; it must be at most {_MOST_LABELS}"
            )
        elif key in _LAYER_COUNTS and isinstance(value, int):
            least = 0 if key in _MAYBE_ZERO else 1
            if not least <= value <= len(header.tensors):
                raise CheckpointError(
                    f"{header.directory}: config.json: {key} is {shown(value)}; "
                    f"it must be {least} to {len(header.tensors)}, the number of tensors in the weights"
                )


@contextmanager
def _bounded_build(header: CheckpointHeader) -> Iterator[None]:
    """Stop the build of a model once it has far more parameters than the files can fill.

    Raises:
        CheckpointError: from within the build.
    """
    most_parameters = _PARAMETERS_PER_TENSOR * len(header.tensors) + 64
    n_bytes = sum(entry.end - entry.start for entry in header.tensors.values())
    most_elements = _ELEMENTS_PER_BYTE * n_bytes + 2**20
    n_parameters = n_elements = 0

    def count(_module: object, name: str, parameter: torch.nn.Parameter | None) -> None:
        nonlocal n_parameters, n_elements
        if parameter is None:
            return
        n_parameters += 1
        n_elements += parameter.numel()
        if n_parameters > most_parameters or n_elements > most_elements:
            raise CheckpointError(
                f"{header.directory}: the model of config.json is far larger than its weights, "
                f"which have {len(header.tensors):,} tensors and {n_bytes:,} bytes"
            )

    hook = torch.nn.modules.module.register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _misshapen(header: CheckpointHeader, name: str, shape: Iterable[int], expected: Iterable[int]) -> CheckpointError:
    return CheckpointError(
        f"{header.directory}: the tensor {shown(name)} has the shape {shown(tuple(shape))}; "
        f"config.json asks for {shown(tuple(expected))}"
    )


def _check_plan(header: CheckpointHeader, plan: Any, dtype: str) -> None:
    """Check the names and the memory of a model on the meta device.

    Raises:
        CheckpointError: the files lack a weight, or have it in another size.
        TinystoryError: there is not enough memory.
    """
    names_by_parameter: dict[Any, list[str]] = {}
    for name, parameter in plan.named_parameters(remove_duplicate=False):
        names_by_parameter.setdefault(parameter, []).append(name)  # tied weights are one parameter with many names
    width = getattr(torch, dtype).itemsize
    n_buffer_bytes = sum(buffer.numel() * buffer.element_size() for buffer in plan.buffers())
    check_memory(sum(parameter.numel() for parameter in names_by_parameter) * width + n_buffer_bytes, "cpu")
    if header.hf_config.get("quantization_config") is not None:
        return  # a packed weight is smaller than its parameter, and has other names

    _check_names(header, plan, names_by_parameter)


def _check_names(header: CheckpointHeader, plan: Any, names_by_parameter: Mapping[Any, Sequence[str]]) -> None:
    """Check that the files have each weight of a model.

    transformers renames, splits and merges tensors, so a name may differ. But a weight cannot come from tensors that
    are smaller than it. Weights of which this is not certain are left to the report of the load.

    Raises:
        CheckpointError: they lack a weight, or have it in another size; or they have it only for an encoder.
    """
    parameters = {name: parameter for parameter, names in names_by_parameter.items() for name in names}
    for name, entry in header.tensors.items():
        if name in parameters and entry.n_elements != parameters[name].numel():
            raise _misshapen(header, name, entry.shape, parameters[name].shape)
    prefix = f"{plan.base_model_prefix}."
    stored = {form for name in header.tensors for form in (name, prefix + name, name.removeprefix(prefix))}
    expected = set(plan.state_dict())
    n_left_over = sum(
        entry.n_elements
        for name, entry in header.tensors.items()
        if not {name, prefix + name, name.removeprefix(prefix)} & expected
    )
    ignored = [re.compile(pattern) for pattern in getattr(plan, "_keys_to_ignore_on_load_missing", None) or ()]
    lacking = [
        names[0]
        for parameter, names in names_by_parameter.items()
        if not stored.intersection(names)
        and parameter.numel() > n_left_over
        and not any(pattern.search(name) for pattern in ignored for name in names)
    ]
    if lacking and header.hf_config.get("is_encoder_decoder") is True:
        kind = shown(header.hf_config["model_type"])
        raise CheckpointError(f"{header.directory}: {kind} is an encoder-decoder, and its decoder cannot write alone")
    if lacking:
        raise lacking_tensors(header.directory, lacking)
