"""Say what a file or folder is that is no checkpoint here, and what makes one of it. It only looks at names.

The exceptions are the first bytes of a `.bin` file, and the base model that a LoRA adapter names.
"""

import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from tinystory.errors import CheckpointError
from tinystory.safe.reading import read_json_object, shown

__all__ = ["foreign_kind", "told_file", "told_folder", "told_weights"]

_SAVE = "load the original model with transformers and save it with save_pretrained"
_PICKLED = (
    "which can run code and are never opened; if you trust them, load them with transformers and save them with "
    "save_pretrained"
)


class ForeignKind(NamedTuple):
    """A kind of file that other programs use.

    Attributes:
        pattern: matches the whole name of such a file, in lower case.
        is_called: what such files are, after "has".
        advice: what to do.
    """

    pattern: str
    is_called: str
    advice: str


_KINDS = (  # the first that fits counts
    ForeignKind(
        r"adapter_(config\.json|model\.(safetensors|bin))",
        "a LoRA adapter",
        "merge it into its base model with merge_and_unload of peft, and save the result with save_pretrained",
    ),
    ForeignKind(r"model_index\.json", "a pipeline of diffusers", "tinystory runs language models only"),
    ForeignKind(
        r"consolidated.*\.(safetensors|pth?)",
        "weights in the own format of Mistral or Meta",
        "take the Hugging Face version of this model, which has config.json and model.safetensors",
    ),
    ForeignKind(r".*\.gguf", "GGUF weights only", "import the file with `tinystory import FILE.gguf -o FOLDER`"),
    ForeignKind(r"(shared_|source_|target_)?vocabulary\.(json|txt)", "a model of CTranslate2", _SAVE),
    ForeignKind(r".*\.(bin|pt|pth|ckpt|pkl|pickle)", "only pickled weights", _PICKLED),
    ForeignKind(r".*\.onnx(_data)?|onnx", "a model for ONNX", _SAVE),
    ForeignKind(r"openvino_.*", "a model for OpenVINO", _SAVE),
    ForeignKind(r"tf_model.*\.h5|saved_model\.pb|.*\.tflite", "weights of TensorFlow", _SAVE),
    ForeignKind(r"flax_model.*\.msgpack", "weights of Flax", _SAVE),
    ForeignKind(r".*\.npz", "weights of MLX or NumPy", _SAVE),
)
_CTRANSLATE2, _PICKLES = _KINDS[4], _KINDS[5]
_MOST_BYTES = 2**20
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")


def foreign_kind(names: Collection[str]) -> tuple[ForeignKind, str] | None:
    """Return the kind of foreign model that a folder with these names has, and the name that shows it."""
    for kind in _KINDS:
        if kind is _CTRANSLATE2 and "model.bin" not in names:
            continue
        found = sorted(name for name in names if re.fullmatch(kind.pattern, name.lower()))
        if kind is _PICKLES:  # the arguments of the Trainer lie beside weights of every kind
            found = [name for name in found if name not in ("training_args.bin", "optimizer.pt", "scheduler.pt")]
        if found:
            return kind, found[0]
    return None


def told_file(path: Path) -> str:
    """Return what a file is that was given in place of a folder, as the rest of a sentence that begins with it."""
    suffix, folder = path.suffix.lower(), path.parent
    start = _first_bytes(path)
    if start.startswith(b"GGUF") or suffix == ".gguf":
        return f"is a GGUF file; import it with `tinystory import {path} -o FOLDER`, and give that folder"
    if suffix == ".safetensors":
        adapter = path.name.startswith("adapter_")
        advice = _KINDS[0].advice if adapter else f"give its folder, which also holds config.json: {folder}"
        return f"is {'a LoRA adapter' if adapter else 'a file of weights'}; {advice}"
    # A file of llama2.c begins with a width as four bytes, which may look like the number of a pickle protocol.
    is_pickle = start[:1] == b"\x80" and b"\x02" <= start[1:2] <= b"\x05" and start[2:4] != b"\0\0"
    pickled = is_pickle or start.startswith(b"PK\x03\x04") or path.name.startswith("pytorch_model")
    if suffix == ".bin" and not pickled:
        return (
            "is a file; give the directory that holds config.json and model.safetensors; "
            "import it with `tinystory import` if it is of llama2.c"
        )
    kind = foreign_kind([path.name])
    if kind is not None:
        what = kind[0].is_called.removeprefix("only ")
        return f"is a file with {what}{_link(kind[0])}{kind[0].advice}"
    return "is a file; give the directory that holds config.json and model.safetensors"


def told_folder(directory: Path, names: Collection[str]) -> str | None:
    """Return what a folder without a usable config.json is, as the rest of a sentence; None if nobody knows."""
    found = foreign_kind(names)
    if found is not None and found[0] is not _PICKLES:
        return _told(directory, *found)
    if any(name.endswith(".safetensors") for name in names) and "config.json" not in names:
        return "has no config.json, which tells the architecture of its weights; get it from where they came from"
    return None if found is None else _told(directory, *found)


def told_weights(directory: Path) -> str:
    """Return why a folder with a config.json has no weights that can be read, and what to do: a whole sentence.

    Args:
        directory: it has neither model.safetensors nor its index.
    """
    try:
        names = sorted(entry.name for entry in directory.iterdir())
    except OSError as error:
        return f"cannot read {directory}: {error.strerror}"
    others = [name for name in names if name.endswith(".safetensors")]
    found = foreign_kind(names)
    if shards := [name for name in others if _SHARD.fullmatch(name)]:
        return (
            f"{directory} has the shard {shown(shards[0])}, but no model.safetensors.index.json, which names all "
            "shards; get it from where the shards came from"
        )
    if len(others) == 1 and foreign_kind(others) is None:
        return (
            f"{directory} has no model.safetensors, but {shown(others[0])}; if these are the weights of config.json, "
            f"rename the file: mv {directory / others[0]} {directory / 'model.safetensors'}"
        )
    if found is not None:
        return f"{directory} {_told(directory, *found)}"
    if others:
        return f"{directory} has no model.safetensors, but {', '.join(map(shown, others[:3]))}; {_SAVE}"
    return f"{directory} has no model.safetensors (and no model.safetensors.index.json)"


def _told(directory: Path, kind: ForeignKind, name: str) -> str:
    base = _base_model(directory) if kind is _KINDS[0] else ""
    return f"has {kind.is_called} ({shown(name)}){base}{_link(kind)}{kind.advice}"


def _link(kind: ForeignKind) -> str:
    return ", " if kind is _PICKLES else "; "


def _base_model(directory: Path) -> str:
    try:
        base = read_json_object(directory / "adapter_config.json", _MOST_BYTES, raises=CheckpointError)
    except CheckpointError:
        return ""
    name = base.get("base_model_name_or_path")
    return f" of {shown(name)}" if isinstance(name, str) and name else ""


def _first_bytes(path: Path) -> bytes:
    if not os.path.isfile(path):
        return b""
    try:
        with path.open("rb") as file:
            return file.read(8)
    except OSError:
        return b""
