"""The Hugging Face hub: the local cache first, then the network, and a quick answer where there is none.

Of models, only configs, safetensors weights and tokenizer texts are ever fetched: no pickled weights, no code.
Of datasets only the first question is asked here; `datasets` fetches them, but would retry for half a minute.
"""

import re
import threading
from pathlib import Path

from tinystory.checkpoint.safetensors_header import weight_files
from tinystory.errors import CheckpointError, one_line

__all__ = ["dataset_problem", "download", "is_model_id"]

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

    cached = _cached(model_id)
    if cached is not None:
        return cached
    _check_hub_has(model_id)
    try:
        return Path(snapshot_download(model_id, allow_patterns=_FILES, ignore_patterns=_NOT_FILES))
    except Exception as error:  # its HTTP client, whose errors these are, changes from version to version
        raise CheckpointError(f"cannot download {model_id}: {one_line(error)}") from error


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


def dataset_problem(dataset_id: str) -> str | None:
    """Why the hub cannot give a dataset now, in one line; None where it can. Takes at most about 6 seconds."""
    return _problem(_ask("dataset", dataset_id), "dataset", dataset_id, f"there is no file or folder {dataset_id}")


def _check_hub_has(model_id: str) -> None:
    """Ask the hub once whether it has safetensors weights of this model."""
    answer = _ask("model", model_id)
    problem = _problem(answer, "model", model_id, f"there is no directory {model_id}")
    if problem:
        raise CheckpointError(problem) from (answer if isinstance(answer, Exception) else None)


def _ask(kind: str, repo_id: str) -> list[str] | Exception:
    """The files of a model or dataset, asked for once, without retries; or what went wrong."""
    from huggingface_hub import HfApi

    answer: list[list[str] | Exception] = []

    def ask() -> None:
        try:
            api = HfApi()
            ask_about = api.dataset_info if kind == "dataset" else api.model_info
            info = ask_about(repo_id, timeout=_REQUEST_SECONDS)
            answer.append([file.rfilename for file in info.siblings or []])
        except Exception as error:  # for the caller's thread
            answer.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    return answer[0] if answer else TimeoutError("no answer")


def _problem(answer: list[str] | Exception, kind: str, repo_id: str, here: str) -> str | None:
    """One line on what an answer of `_ask` means for the user; `here` says what is not on this machine."""
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
        return (
            f"the hub's {repo_id} has no model.safetensors, only formats that tinystory does not open; "
            "look for a safetensors version of it"
        )
    return None
