"""A session as a file: a tree of stories with the studio's settings, as one JSON object. Data only.

Every field is checked when it is read, since files travel: types, ranges, parents before children. A spec or a
model's name is a string here; nothing is opened because a file says so.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast, get_args

import tinystory
from tinystory.decoding import FinishReason, Token
from tinystory.errors import CheckpointError, SessionError
from tinystory.safe.fields import MAX_ID, Fields, WrongField, is_id
from tinystory.safe.reading import parse_json_object, regular_file_size, shown
from tinystory.safe.writing import write_atomically
from tinystory.settings import MAX_TOKENS
from tinystory.story.tree import ROOT, StoryTree, Turn, Written

__all__ = [
    "SCHEMA",
    "SavedChat",
    "Summary",
    "encode",
    "load_session",
    "read_summary",
    "save_session",
    "session_fields",
]

SCHEMA = 1
MAX_BYTES = 64 * 2**20
"""Of a session file; some two million tokens."""
MAX_NODES = 100_000

_HEAD_BYTES = 2**18
_BEGINS = 80


@dataclass(frozen=True)
class SavedChat:
    """What a session file holds.

    Attributes:
        tree: the stories, with the turn on the desk and where redo goes.
        spec: the decoder, as it stood.
        seed: None draws one for each story.
        max_tokens: at most so many new tokens a turn.
        stop: texts at which a turn ends.
        words: those wanted.
        tint: of the tokens.
        model: as the user gave it.
        model_hash: of what wrote last, in hex; empty where nothing has.
        dtype: of the computation.
        automatic: whether its name was not given by the user.
        created: when it was begun, in ISO 8601.
        changed: when it was written.
        version: of the tinystory that wrote it.
    """

    tree: StoryTree
    spec: str
    seed: int | None = None
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    tint: str = "off"
    model: str = "default"
    model_hash: str = ""
    dtype: str = "float32"
    automatic: bool = True
    created: str = ""
    changed: str = ""
    version: str = tinystory.__version__


@dataclass(frozen=True)
class Summary:
    """What a list of sessions shows of one.

    Attributes:
        stories: how many have been begun.
        turns: turns of the tree.
        begins: first words of the first story.
    """

    stories: int
    turns: int
    begins: str


def now() -> str:
    """The time in ISO 8601, with the zone's offset."""
    return datetime.now(UTC).astimezone().isoformat(timespec="seconds")


# --- writing ---


def session_fields(session: SavedChat) -> dict[str, Any]:
    """Everything but the turns, as JSON."""
    tree = session.tree
    summary = summary_of(tree)
    return {
        "schema": SCHEMA,
        "tinystory": session.version,
        "created": session.created or now(),
        "changed": session.changed or now(),
        "automatic": session.automatic,
        "stories": summary.stories,
        "turns": summary.turns,
        "begins": summary.begins,
        "spec": session.spec,
        "seed": session.seed,
        "max_tokens": session.max_tokens,
        "stop": list(session.stop),
        "words": list(session.words),
        "tint": session.tint,
        "model": session.model,
        "model_hash": session.model_hash,
        "dtype": session.dtype,
        "current": tree.current,
        "latest": [list(pair) for pair in tree.latest.items()],
    }


def node_fields(turn: Turn) -> dict[str, Any]:
    """A turn as JSON."""
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


def encode(session: SavedChat, cache: dict[int, str] | None = None) -> bytes:
    """The content of a file: the settings on the first line, then a turn a line.

    Args:
        session: what to write.
        cache: of the nodes' lines, by their number; filled and used here. Nodes never change.

    Raises:
        SessionError: it would be larger than what can be read again.
    """
    cache = {} if cache is None else cache
    for turn in session.tree.turns.values():
        if turn.id not in cache:
            cache[turn.id] = _compact(node_fields(turn))
    lines = ",\n".join(cache[number] for number in session.tree.turns)
    content = f'{_compact(session_fields(session))[:-1]},\n"nodes":[\n{lines}\n]}}\n'.encode(errors="replace")
    if len(content) > MAX_BYTES or len(session.tree.turns) > MAX_NODES:
        raise SessionError(
            f"the session has outgrown a file ({MAX_BYTES // 2**20} MB, {MAX_NODES:,} turns): "
            "/export the stories you want to keep, and begin another chat"
        )
    return content


def save_session(path: Path, session: SavedChat, cache: dict[int, str] | None = None) -> None:
    """Write a session file whole or not at all, for its owner alone.

    Raises:
        SessionError: it cannot be written; what was there is untouched.
    """
    content = encode(session, cache)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(path, content, 0o600)
    except OSError as error:
        raise SessionError(f"cannot keep the session in {path}: {error.strerror or error}") from error


def summary_of(tree: StoryTree) -> Summary:
    """What a list shows of these stories."""
    stories = tree.children(ROOT)
    begins = next((" ".join(turn.own[: 4 * _BEGINS].split())[:_BEGINS] for turn in stories if turn.own.strip()), "")
    return Summary(len(stories), len(tree.turns), begins)


def _compact(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _rounded(value: float, digits: int) -> float | str | None:
    """A number for JSON, which knows neither NaN nor infinity."""
    if math.isnan(value):
        return None
    return str(value) if math.isinf(value) else round(value, digits)


# --- reading ---


def load_session(path: Path) -> SavedChat:
    """Read and check a session file.

    Raises:
        SessionError: it is missing, unreadable, of a newer tinystory, or damaged.
    """
    try:
        size = regular_file_size(path)
        if size > MAX_BYTES:
            raise SessionError(f"{path} has {size} bytes; a session file has at most {MAX_BYTES}")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except CheckpointError as error:
        raise SessionError(str(error)) from error
    except OSError as error:
        raise SessionError(f"cannot read {path}: {error.strerror}") from error
    try:
        fields = parse_json_object(content, str(path))
    except CheckpointError as error:
        raise SessionError(str(error), damaged=True) from error
    return decode(fields, str(path))


def read_summary(path: Path) -> Summary:
    """What a list shows of a file, from its first line where that is as written here, without checking the rest.

    Raises:
        SessionError: as `load_session`.
    """
    try:
        with path.open("rb") as file:
            line = file.readline(_HEAD_BYTES)
        fields = parse_json_object(line.rstrip().removesuffix(b",") + b"}", str(path))
        reader = Fields(fields, "")
        return Summary(reader.whole("stories"), reader.whole("turns"), reader.text("begins")[:_BEGINS])
    except (CheckpointError, WrongField, OSError):
        return summary_of(load_session(path).tree)


def decode(fields: Mapping[str, Any], where: str) -> SavedChat:
    """Check the content of a session file; `where` names it in errors.

    Raises:
        SessionError: a field is missing or wrong, or the file is of a newer tinystory.
    """
    try:
        reader = Fields(fields, "")
        _check_schema(reader, where)
        return SavedChat(
            tree=_tree(reader),
            spec=reader.text("spec"),
            seed=None if fields.get("seed") is None else reader.seed("seed"),
            max_tokens=reader.whole("max_tokens", 1, MAX_TOKENS),
            stop=reader.texts("stop"),
            words=reader.texts("words"),
            tint=reader.text("tint"),
            model=reader.text("model"),
            model_hash=reader.text("model_hash"),
            dtype=reader.text("dtype"),
            automatic=reader.flag("automatic"),
            created=reader.text("created"),
            changed=reader.text("changed"),
            version=reader.text("tinystory"),
        )
    except WrongField as error:
        raise SessionError(f"{where} is no session that can be read: {error}", damaged=True) from error


def _check_schema(reader: "Fields", where: str) -> None:
    schema = reader.whole("schema", 1)
    if schema > SCHEMA:
        raise SessionError(
            f"{where} is of a newer tinystory (session schema {schema}; this one reads up to {SCHEMA}): "
            "update with pip install -U tinystory"
        )


def _tree(reader: Fields) -> StoryTree:
    """The tree, with all that `StoryTree.add` would check, in linear time."""
    tree = StoryTree()
    lengths = {ROOT: (0, 0)}  # of each node's story, in tokens and in characters
    last = ROOT
    for turn in reader.items("nodes", _node, MAX_NODES):
        where = f"node {turn.id}"
        if turn.id <= last:
            raise WrongField(f"{where} stands twice or out of order")
        last = turn.id
        if turn.parent not in lengths:
            raise WrongField(f"{where} goes on from turn {turn.parent}, which does not stand before it")
        n_tokens, n_characters = lengths[turn.parent]
        if turn.kept > n_tokens or turn.shared > n_characters:
            raise WrongField(f"{where} keeps more of turn {turn.parent} than there is")
        n_added = len(turn.typed_ids) + len(turn.picked) + len(turn.tail_ids)
        lengths[turn.id] = (turn.kept + n_added, turn.shared + len(turn.own))
        tree.turns[turn.id] = turn
    tree.current = reader.whole("current")
    if tree.current not in lengths:
        raise WrongField(f"current is turn {tree.current}, which is not there")
    for parent, child in reader.items("latest", _pair, MAX_NODES):
        if child not in tree.turns or tree.turns[child].parent != parent:
            raise WrongField(f"latest says that turn {child} goes on from turn {parent}, and it does not")
        tree.latest[parent] = child
    return tree


def _node(value: Any, where: str) -> Turn:
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
        spec=reader.text("spec"),
        seed=reader.seed("seed"),
        number=reader.whole("number"),
        model=reader.text("model"),
        model_hash=reader.text("model_hash"),
        dtype=reader.text("dtype"),
        max_new_tokens=reader.whole("max_new_tokens", 0),
        stop=reader.texts("stop"),
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
    """What `_rounded` wrote; None for anything else."""
    if value is None:
        return math.nan
    if value in ("inf", "-inf") or (type(value) is float and math.isfinite(value)):
        return float(value)
    return float(value) if type(value) is int and abs(value) <= MAX_ID else None


def _pair(value: Any, where: str) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2 or not all(is_id(one) for one in value):
        raise WrongField(f"{where} must be a pair of turn numbers, not {shown(value)}")
    return value[0], value[1]
