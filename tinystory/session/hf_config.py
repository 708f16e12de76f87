"""Build the config of a transformers model from config.json, without what makes transformers fetch or run something.

config.json comes from strangers. It may name code of its own, a kernel of the hub for the attention or the experts, or
other files. None of this is part of the model's mathematics, so it is left out. This module knows no weights.
"""

import importlib.util
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tinystory.checkpoint import CheckpointHeader
from tinystory.errors import CheckpointError
from tinystory.safe.reading import shown

__all__ = ["safe_config"]

_LEFT_OUT = re.compile(
    r".*_implementation(_\w+)?"  # of the attention or the experts: also a kernel of the hub
    r"|auto_map|custom_\w+|\w*kernel_config|use_kernels|fusion_config|distributed_config"  # code
    r"|transformers_weights|configuration_files|_?name_or_path|_commit_hash|use_pretrained_backbone"  # other files
    r"|return_dict|use_return_dict|torchscript|output_attentions|output_hidden_states"  # another form of the output
)
"""The keys that config.json may have at any depth, and that transformers never sees."""

_QUANTISED_BY_PACKAGES = frozenset(
    {"aqlm", "awq", "bitsandbytes", "compressed-tensors", "gptq", "hqq", "quanto", "torchao"}
)
"""The quantisations whose code is in a package that the user has installed. For others, transformers fetches code."""


def safe_config(header: CheckpointHeader) -> Any:
    """Return the config of a model, an object of transformers, in which nothing makes transformers fetch or run code.

    Raises:
        CheckpointError: the model needs code that is not installed, or peft would change its weights.
        Exception: of any kind, if transformers does not know the model.
    """
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    directory, content = header.directory, header.hf_config
    if "auto_map" in content and content.get("model_type") not in CONFIG_MAPPING:
        raise CheckpointError(f"{directory}: the model needs code of its own (auto_map), which is never run")
    if (directory / "adapter_config.json").exists() and importlib.util.find_spec("peft") is not None:
        raise CheckpointError(f"{directory}: adapter_config.json would change the weights; merge it, or move it away")
    for part in _parts(content):
        _check_part(directory, part)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(_kept(content)), encoding="utf-8")
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _parts(content: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield a config and the configs within it."""
    yield content
    for value in content.values():
        if isinstance(value, Mapping):
            yield from _parts(value)


def _check_part(directory: Path, part: Mapping[str, Any]) -> None:
    """Check the values that only matter because of what transformers would fetch for them.

    Raises:
        CheckpointError: it would fetch code, or a part of the model.
    """
    quantisation = part.get("quantization_config")
    if quantisation is not None:
        stated = quantisation if isinstance(quantisation, Mapping) else {}
        old_form = "load_in_4bit" in stated or "load_in_8bit" in stated
        method = stated.get("quant_method", "bitsandbytes" if old_form else None)
        if not isinstance(method, str) or method not in _QUANTISED_BY_PACKAGES:
            raise CheckpointError(
                f"{directory}: config.json: the weights are quantised with {shown(method)}, for which transformers "
                "may fetch code; use plain weights, such as bfloat16"
            )
    for name, value in part.items():
        if isinstance(value, str) and re.match(r"hf[-_]hub:", value):
            raise CheckpointError(f"{directory}: config.json: {shown(name)} is {shown(value)}, which would be fetched")


def _kept(value: Any) -> Any:
    """Return a value of config.json without the keys that are left out."""
    if isinstance(value, dict):
        return {name: _kept(part) for name, part in value.items() if not _LEFT_OUT.fullmatch(name)}
    return [_kept(part) for part in value] if isinstance(value, list) else value
