"""Saved chats as JSON objects, and back. It knows no file.

A file may come from a stranger, so every field is checked when it is read: its type, its range, and that a parent
stands before its children. A spec or the name of a model is only text here; nothing is opened because a file names it.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, cast, get_args

from tinystory.decoding import FinishReason, Token
from tinystory.errors import SessionError
from tinystory.safe.fields import MAX_ID, Fields, WrongField, is_id
from tinystory.safe.reading import shown
from tinystory.settings import MAX_TOKENS
from tinystory.story.saved_chat import SavedChat, now, summary_of
from tinystory.story.tree import ROOT, StoryTree, Turn, Written
from tinystory.writing.stops import MAX_STOP_CHARACTERS, MAX_STOPS

__all__ = ["MAX_TURNS", "SCHEMA", "chat_from", "compact", "session_fields", "turn_fields"]

SCHEMA = 1
"""The version of the file format; a file with a higher one is refused."""
MAX_TURNS = 100_000
"""The largest number of turns in one session."""
_LONGEST_SPEC = 20_000
"""Characters of the longest spec. Each of its stages costs time at every token."""


# --- writing ---


def session_fields(chat: SavedChat) -> dict[str, Any]:
    """Return everything except the turns, for JSON."""
    tree = chat.tree
    summary = summary_of(tree)
    return {
        "schema": SCHEMA,
        "tinystory": chat.version,
        "created": chat.created or now(),
        "changed": chat.changed or now(),
        "automatic": chat.automatic,
        "stories": summary.stories,
        "turns": summary.turns,
        "begins": summary.begins,
        "spec": chat.spec,
        "seed": chat.seed,
        "max_tokens": chat.max_tokens,
        "stop": list(chat.stop),
        "words": list(chat.words),
        "tint": chat.tint,
        "model": chat.model,
        "model_hash": chat.model_hash,
        "dtype": chat.dtype,
        "current": tree.current,
        "latest": [list(pair) for pair in tree.latest.items()],
    }


def turn_fields(turn: Turn) -> dict[str, Any]:
    """Return a turn for JSON."""
    written = turn.written
    return {
        "id": turn.id,
        "parent": turn.parent,
        "kept": turn.kept,
        "typed": turn.typed,
        "typed_ids": list(turn.typed_ids),
        "vocabulary": turn.vocabulary,
        "shared": turn.shared,
        "own": turn.own,
        "hidden": turn.hidden,
        "tail_ids": list(turn.tail_ids),
        "written": None
        if written is None
        else {
            "spec": written.spec,
            "seed": written.seed,
            "number": written.number,
            "model": written.model,
            "model_hash": written.model_hash,
            "dtype": written.dtype,
            "max_new_tokens": written.max_new_tokens,
            "stop": list(written.stop),
            "heal": written.heal,
            "finish_reason": written.finish_reason,
            "tokens": [
                [token.id, _rounded(token.logprob, 6), token.rank, _rounded(token.entropy, 4)]
                for token in written.tokens
            ],
        },
    }


def compact(fields: Mapping[str, Any]) -> str:
    """Return a JSON object as one line of text."""
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _rounded(value: float, digits: int) -> float | str | None:
    """Return a number for JSON: None for NaN and a text for infinity, which JSON cannot write."""
    if math.isnan(value):
        return None
    return str(value) if math.isinf(value) else round(value, digits)


# --- reading ---


def chat_from(fields: Mapping[str, Any], where: str) -> SavedChat:
    """Return the saved chat that `session_fields` and `turn_fields` describe; `where` names the file in errors.

    Raises:
        SessionError: the file is from a newer tinystory.
        WrongField: a field is missing or wrong.
    """
    reader = Fields(fields, "")
    _check_schema(reader, where)
    return SavedChat(
        tree=_tree(reader),
        spec=reader.text("spec", _LONGEST_SPEC),
        seed=None if fields.get("seed") is None else reader.seed("seed"),
        max_tokens=reader.whole("max_tokens", 1, MAX_TOKENS),
        stop=reader.texts("stop", MAX_STOPS, MAX_STOP_CHARACTERS),
        words=reader.texts("words", MAX_STOPS, MAX_STOP_CHARACTERS),
        tint=reader.text("tint"),
        model=reader.text("model"),
        model_hash=reader.text("model_hash"),
        dtype=reader.text("dtype"),
        automatic=reader.flag("automatic"),
        created=reader.text("created"),
        changed=reader.text("changed"),
        version=reader.text("tinystory"),
    )


def _check_schema(reader: Fields, where: str) -> None:
    schema = reader.whole("schema", 1)
    if schema > SCHEMA:
        raise SessionError(
            f"{where} is from a newer tinystory (session schema {schema}; this one reads up to {SCHEMA}): "
            "update with pip install -U tinystory"
        )


def _tree(reader: Fields) -> StoryTree:
    """Return the tree. This checks all that `StoryTree.add` checks, but in linear time."""
    tree = StoryTree()
    last = ROOT
    for turn in reader.items("nodes", _turn, MAX_TURNS):
        where = f"turn {turn.id}"
        if turn.id <= last:
            raise WrongField(f"{where} stands twice, or out of order")
        last = turn.id
        parent = tree.turns.get(turn.parent)
        if parent is None and turn.parent != ROOT:
            raise WrongField(f"{where} goes on from turn {turn.parent}, which does not stand before it")
        n_tokens, n_characters = (parent.n_tokens, parent.n_characters) if parent else (0, 0)
        if turn.kept > n_tokens or turn.shared > n_characters:
            raise WrongField(f"{where} keeps more of turn {turn.parent} than that turn has")
        tree.turns[turn.id] = turn
    tree.current = reader.whole("current")
    if tree.current != ROOT and tree.current not in tree.turns:
        raise WrongField(f"current is turn {tree.current}, and the file has no such turn")
    for number, child in reader.items("latest", _pair, MAX_TURNS):
        if child not in tree.turns or tree.turns[child].parent != number:
            raise WrongField(f"latest says that turn {child} goes on from turn {number}, and it does not")
        tree.latest[number] = child
    return tree


def _turn(value: Any, where: str) -> Turn:
    reader = Fields(value, f"{where}.")
    written = None if reader.get("written") is None else _written(reader.get("written"), f"{where}.written.")
    return Turn(
        id=reader.whole("id", ROOT + 1),
        parent=reader.whole("parent"),
        kept=reader.whole("kept"),
        typed=reader.text("typed"),
        typed_ids=reader.ids("typed_ids"),
        written=written,
        vocabulary=reader.text("vocabulary"),
        shared=reader.whole("shared"),
        own=reader.text("own"),
        hidden=reader.whole("hidden", 0, len(written.tokens) if written else 0),
        tail_ids=reader.ids("tail_ids"),
    )


def _written(value: Any, where: str) -> Written:
    reader = Fields(value, where)
    reason = reader.text("finish_reason")
    if reason not in get_args(FinishReason):
        raise reader.wrong("finish_reason", f"one of {', '.join(get_args(FinishReason))}")
    return Written(
        spec=reader.text("spec", _LONGEST_SPEC),
        seed=reader.seed("seed"),
        number=reader.whole("number"),
        model=reader.text("model"),
        model_hash=reader.text("model_hash"),
        dtype=reader.text("dtype"),
        max_new_tokens=reader.whole("max_new_tokens", 0),
        stop=reader.texts("stop", MAX_STOPS, MAX_STOP_CHARACTERS),
        heal=reader.text("heal"),
        tokens=tuple(reader.items("tokens", _token, MAX_ID)),
        finish_reason=cast(FinishReason, reason),
    )


def _token(value: Any, where: str) -> Token:
    if isinstance(value, list) and len(value) == 4:
        token_id, logprob, rank, entropy = value
        numbers = _number(logprob), _number(entropy)
        if is_id(token_id) and type(rank) is int and -1 <= rank <= MAX_ID and None not in numbers:
            return Token(token_id, cast(float, numbers[0]), rank, cast(float, numbers[1]))
    raise WrongField(f"{where} must be [id, logprob, rank, entropy], not {shown(value)}")


def _number(value: Any) -> float | None:
    """Return the number that `_rounded` wrote; None if the value is anything else."""
    if value is None:
        return math.nan
    if value in ("inf", "-inf") or (type(value) is float and math.isfinite(value)):
        return float(value)
    return float(value) if type(value) is int and abs(value) <= MAX_ID else None


def _pair(value: Any, where: str) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2 or not all(is_id(number) for number in value):
        raise WrongField(f"{where} must be a pair of turn numbers, not {shown(value)}")
    return value[0], value[1]
