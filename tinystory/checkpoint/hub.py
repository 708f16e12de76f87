"""Fetch models from the Hugging Face hub: from the local cache, else over the network; fail quickly without one.

Only configs, safetensors weights and tokenizer files of models are fetched, never pickled weights or code. Datasets are
fetched by the library `datasets`, which retries for half a minute; so this module first asks if the hub has them.
"""

import re
import threading
from pathlib import Path

from tinystory.checkpoint.formats.foreign_files import foreign_kind
from tinystory.checkpoint.safetensors_header import weight_files
from tinystory.errors import CheckpointError, one_line
from tinystory.safe.reading import shown

__all__ = ["dataset_problem", "download", "is_model_id"]

_MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
_FILES = ["*.json", "*.txt", "model*.safetensors"]
_NOT_FILES = ["*/*"]
_REQUEST_SECONDS = 4.0
_OTHER_VERSION = "look for a safetensors version of it"
_PROBE_SECONDS = 6.0
"""Time limit of the first question to the hub as a whole; the lookup of a host name has no limit of its own."""


def is_model_id(text: str) -> bool:
    """Return whether a string has the form of a hub id: `name` or `organisation/name`."""
    return _MODEL_ID.fullmatch(text) is not None


def download(model_id: str) -> Path:
    """Return the local directory of a hub model; download the model first unless the cache has all of it.

    `HF_HUB_OFFLINE`, `HF_HOME`, `HF_ENDPOINT` and `HF_TOKEN` work as in huggingface_hub.

    Raises:
        CheckpointError: there is no such model, no access, no safetensors weights, or no network. A missing network
            is noticed within about 6 seconds.
    """
    from huggingface_hub import snapshot_download

    cached = _cached(model_id)
    if cached is not None:
        return cached
    _check_hub_has(model_id)
    try:
        return Path(snapshot_download(model_id, allow_patterns=_FILES, ignore_patterns=_NOT_FILES))
    except Exception as error:  # the HTTP client and its errors change between versions
        raise CheckpointError(f"cannot download {model_id}: {one_line(error)}") from error


def _cached(model_id: str) -> Path | None:
    """Return the directory of a model in the cache, or None if it is not complete."""
    from huggingface_hub import snapshot_download

    try:
        directory = Path(
            snapshot_download(model_id, allow_patterns=_FILES, ignore_patterns=_NOT_FILES, local_files_only=True)
        )
        complete = all((directory / file).exists() for file in ["config.json", *weight_files(directory)])
    except (OSError, ValueError, CheckpointError):
        return None
    return directory if complete else None


def dataset_problem(dataset_id: str) -> str | None:
    """Return in one line why the hub cannot give a dataset now; None if it can. Takes at most about 6 seconds."""
    return _problem(_ask("dataset", dataset_id), "dataset", dataset_id, f"there is no file or folder {dataset_id}")


def _check_hub_has(model_id: str) -> None:
    """Raise CheckpointError unless the hub has safetensors weights of this model; ask it once."""
    answer = _ask("model", model_id)
    problem = _problem(answer, "model", model_id, f"there is no directory {model_id}")
    if problem:
        raise CheckpointError(problem) from (answer if isinstance(answer, Exception) else None)


def _ask(kind: str, repo_id: str) -> list[str] | Exception:
    """Ask once, without retries, for the file names of a model or dataset; return the error if that fails."""
    from huggingface_hub import HfApi

    answer: list[list[str] | Exception] = []

    def ask() -> None:
        try:
            api = HfApi()
            ask_about = api.dataset_info if kind == "dataset" else api.model_info
            info = ask_about(repo_id, timeout=_REQUEST_SECONDS)
            answer.append([file.rfilename for file in info.siblings or []])
        except Exception as error:  # returned to the caller, who is in another thread
            answer.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    return answer[0] if answer else TimeoutError("no answer")


def _problem(answer: list[str] | Exception, kind: str, repo_id: str, here: str) -> str | None:
    """Return one line that explains a failed answer of `_ask`, or None; `here` says what this machine lacks."""
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

    if isinstance(answer, OfflineModeIsEnabled):
        return f"{here}, and the hub's {kind} of that name is not in the local cache (offline mode is on)"
    if isinstance(answer, GatedRepoError):
        return f"the hub lets only approved users have {repo_id}; ask for access and log in with `hf auth login`"
    if isinstance(answer, RepositoryNotFoundError):
        return f"{here}, and the hub has no {kind} of that name (or it is private)"
    if isinstance(answer, Exception):
        reason = one_line(answer)
        return f"{here}, and the Hugging Face hub cannot be reached ({reason}); check the path or the network"
    if kind == "model" and not any(name.startswith("model") and name.endswith(".safetensors") for name in answer):
        found = foreign_kind(answer)
        what = f"{found[0].is_called} ({shown(found[1])})" if found else "formats that tinystory does not open"
        advice = found[0].advice if found and found[0].is_called.startswith(("GGUF", "a LoRA")) else _OTHER_VERSION
        return f"the hub's {repo_id} has no model.safetensors, but {what}; {advice}"
    return None
