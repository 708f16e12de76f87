"""Turn a studio into a saved chat, and put a saved chat back into a studio. It knows no file."""

from collections.abc import Collection
from typing import cast

from tinystory.checkpoint.shipped import SHIPPED_MODELS
from tinystory.decoding.spec import parse_spec, shown_spec
from tinystory.errors import UsageError
from tinystory.safe.reading import shown
from tinystory.story.saved_chat import SavedChat, now
from tinystory.studio.studio import Studio
from tinystory.studio.views import TINTS, Tint

__all__ = ["restore", "saved_chat", "settings_of"]


def saved_chat(studio: Studio, *, automatic: bool = True, created: str = "") -> SavedChat:
    """Return the part of a studio that a session file keeps.

    Args:
        studio: the studio with the stories and the settings.
        automatic: True if the program chose the session's name.
        created: when the chat began, in ISO 8601.
    """
    hashes = [turn.written.model_hash for turn in studio.tree.turns.values() if turn.written is not None]
    return SavedChat(
        tree=studio.tree,
        spec=studio.spec,
        seed=studio.seed,
        max_tokens=studio.max_tokens,
        stop=studio.stop,
        words=studio.words,
        tint=studio.tint,
        model=studio.backend.name,
        model_hash=hashes[-1] if hashes else "",
        dtype=studio.backend.dtype,
        automatic=automatic,
        created=created,
        changed=now(),
    )


def settings_of(studio: Studio) -> tuple[object, ...]:
    """Return the saved settings that can change while the tree stays the same."""
    return studio.spec, studio.seed, studio.max_tokens, studio.stop, studio.words, studio.tint, studio.backend.name


def restore(studio: Studio, chat: SavedChat, given: Collection[str]) -> list[str]:
    """Put a saved chat into a studio; a setting that cannot be used stays as it is in the studio.

    Args:
        studio: the studio, which is changed.
        chat: the chat from a session file.
        given: names of settings that stay as they are in the studio.

    Returns:
        Notices about what differs from the saved chat.
    """
    studio.tree, studio.words, studio.results = chat.tree, chat.words, {}
    if chat.tint in TINTS:
        studio.tint = cast(Tint, chat.tint)
    if "seed" not in given:
        studio.seed = chat.seed
    if "max_tokens" not in given:
        studio.max_tokens = chat.max_tokens
    if "stop" not in given:
        studio.stop = chat.stop
    notices = [] if "decoder" in given else _restore_decoder(studio, chat.spec)
    if chat.model_hash and chat.model_hash != studio.backend.model_hash():
        name = shown(chat.model)[1:-1]
        notices.append(
            f"the session was written with the model {name} ({chat.model_hash[:12]}), "
            f"not with {studio.backend.name}; /model {name} opens that model"
        )
    return notices


def _restore_decoder(studio: Studio, spec: str) -> list[str]:
    """Put the decoder of a saved chat into a studio; return a notice if it cannot be used."""
    try:
        decoder = parse_spec(spec, studio.registry)
        others = [name for name in decoder.models if name not in SHIPPED_MODELS]
        if others:  # nothing is opened because a file names it
            raise UsageError(f"it opens {shown(others[0])}; type such a decoder yourself")
        studio.decoder = decoder
    except UsageError as error:
        return [f"the session's decoder cannot be used ({error}); the decoder is {shown_spec(studio.decoder)} now"]
    return []
