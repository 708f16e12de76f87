"""Models from the Hugging Face hub: the local cache first, then the network, and a quick answer where there is none.

Only configs, safetensors weights and tokenizer texts are ever fetched: no pickled weights, no code.
"""

import os
import re
import threading
from pathlib import Path

from tinystory.errors import CheckpointError
from tinystory.safetensors_header import weight_files

__all__ = ["download", "is_model_id"]

_MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
_FILES = ["*.json", "*.txt", "model*.safetensors"]
_NOT_FILES = ["*/*"]
_REQUEST_SECONDS = 4.0
_PROBE_SECONDS = 6.0
"""A name lookup has no time limit of its own, so the first question to the hub gets this one in total."""


def is_model_id(text: str) -> bool:
    """Whether a string has the form of a hub id, `name` or `organisation/name`."""
    return _MODEL_ID.fullmatch(text) is not None


def download(model_id: str) -> Path:
    """The local directory of a hub model, downloaded if the cache has not all of it.

    `HF_HUB_OFFLINE`, `HF_HOME`, `HF_ENDPOINT` and `HF_TOKEN` mean what they mean to huggingface_hub.

    Raises:
        CheckpointError: no such model, no access, no network (within about 6 seconds), or no safetensors weights.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    cached = _cached(model_id)
    if cached is not None:
        return cached
    _check_hub_has(model_id)
    try:
        return Path(snapshot_download(model_id, allow_patterns=_FILES, ignore_patterns=_NOT_FILES))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise CheckpointError(f"cannot download {model_id}: {_one_line(error)}") from error


def _cached(model_id: str) -> Path | None:
    """The model's directory in the cache, where it is complete."""
    from huggingface_hub import snapshot_download

    try:
        directory = Path(
            snapshot_download(model_id, allow_patterns=_FILES, ignore_patterns=_NOT_FILES, local_files_only=True)
        )
        complete = all((directory / file).exists() for file in ["config.json", *weight_files(directory)])
    except (OSError, ValueError, CheckpointError):
        return None
    return directory if complete else None


def _check_hub_has(model_id: str) -> None:
    """Ask the hub once, without retries, whether it has safetensors weights of this model."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

    answer: list[list[str] | Exception] = []

    def ask() -> None:
        try:
            info = HfApi().model_info(model_id, timeout=_REQUEST_SECONDS)
            answer.append([file.rfilename for file in info.siblings or []])
        except Exception as error:  # raised again below, in the caller's thread
            answer.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    result = answer[0] if answer else TimeoutError("no answer")
    here = f"there is no directory {model_id}" if not os.path.exists(model_id) else f"{model_id} is no checkpoint"
    if isinstance(result, OfflineModeIsEnabled):
        raise CheckpointError(
            f"{here}, and the hub's model of that name is not in the local cache (offline mode is on)"
        ) from result
    if isinstance(result, GatedRepoError):
        raise CheckpointError(
            f"the hub lets only approved users have {model_id}; ask for access and log in with `hf auth login`"
        ) from result
    if isinstance(result, RepositoryNotFoundError):
        raise CheckpointError(f"{here}, and the hub has no model of that name (or it is private)") from result
    if isinstance(result, Exception):
        raise CheckpointError(
            f"{here}, and the Hugging Face hub cannot be reached ({_one_line(result)}); check the path or the network"
        ) from result
    if not any(name.startswith("model") and name.endswith(".safetensors") for name in result):
        raise CheckpointError(
            f"the hub's {model_id} has no model.safetensors, only formats that tinystory does not open; "
            "look for a safetensors version of it"
        )


def _one_line(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:160]
