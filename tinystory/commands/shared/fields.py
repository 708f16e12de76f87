"""The JSON fields of a story, of an event and of a call. Programs that read the JSON rely on these keys."""

import importlib.metadata
import platform
from typing import Any

import tinystory
from tinystory.commands.shared.groups import StoryOptions
from tinystory.session.loading import LoadedModel
from tinystory.writing.generate import DraftText, Ended, Story, Text, TextEvent

__all__ = ["common_fields", "event_fields", "story_fields"]


def common_fields(options: StoryOptions, model: LoadedModel, seed: int) -> dict[str, Any]:
    """Return the fields that are the same for every story of a call."""
    return {
        "seed": seed,
        "model": model.name,
        "model_hash": model.hash_if_known,
        "dtype": model.dtype,
        "device": model.device,
        "threads": model.threads,
        "compiled": model.compiled,
        "max_tokens": options.max_tokens,
        "versions": {
            "tinystory": tinystory.__version__,
            "torch": _torch_version(),
            "python": platform.python_version(),
        },
    }


def _torch_version() -> str | None:
    """Return the version of torch; None where tinystory was installed without it."""
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None


def story_fields(story: Story) -> dict[str, Any]:
    """Return the fields of one story."""
    return {
        "prompt": story.request.prompt,
        "text": story.text,
        "completion": story.completion,
        "token_ids": list(story.token_ids),
        "finish_reason": story.finish_reason,
        "statistics": story.statistics,
    }


def event_fields(event: TextEvent) -> dict[str, Any]:
    """Return the fields of one event. The event `end` has the fields of its story."""
    if isinstance(event, Text):
        token_ids = [token.id for token in event.tokens]
        return {"story": event.story, "event": "text", "text": event.text, "token_ids": token_ids}
    if isinstance(event, DraftText):
        return {"story": event.story, "event": "draft", "text": event.text}
    if isinstance(event, Ended):
        return {"story": event.story, "event": "end"} | story_fields(event.result)
    return {"story": event.story, "event": "trimmed", "n_tokens": event.n_tokens}
