"""`tinystory replay`: write the stories of a session again, and compare them with the file."""

import dataclasses
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tinystory
from tinystory.commands.shared.groups import DecoderFileOptions
from tinystory.commands.shared.notices import warn
from tinystory.commands.shared.streams import apart
from tinystory.decoding.plugins import Registry, discover
from tinystory.decoding.spec import spec_as_shown
from tinystory.dtypes import COMPUTED_DTYPES
from tinystory.errors import CheckpointError, UsageError
from tinystory.safe.reading import shown
from tinystory.safe.showing import visible
from tinystory.screen.facts import is_dumb
from tinystory.session.loading import LoadedModel, load
from tinystory.story.session_file import load_session
from tinystory.story.tree import StoryTree, Turn, Written
from tinystory.studio.kept_sessions import find_session

__all__ = ["ReplayOptions", "run"]

_HASH = 12


@dataclass(frozen=True, kw_only=True)
class ReplayOptions(DecoderFileOptions):
    """The options of `tinystory replay`.

    Attributes:
        file: the name or the file of a session, or a story exported as .json.
        with_model: the model to replay with; None is the model that the file names.
        device: where the model runs, as torch names it.
        json: print one JSON object.
    """

    file: Path
    with_model: str | None
    device: str
    json: bool


def run(options: ReplayOptions) -> int:
    """Replay a session and print the result; return 1 if a turn differs from its record, else 0."""
    file = find_session(options.file)
    chat = load_session(file)
    registry = discover(options.decoder_file)
    turns = [turn for turn in chat.tree.turns.values() if turn.written is not None]
    rows: list[dict[str, Any]] = []
    models = _Models(options)
    for row in apart(_replayed(chat.tree, turns, registry, models)):
        rows.append(row)
        _clear_progress()
        if not options.json:
            print(visible(_line(row | {"spec": spec_as_shown(row["spec"], registry)})))
    _clear_progress()
    ok = all(row["ok"] for row in rows)
    if options.json:
        totals = {name: sum(row[name] for row in rows) for name in ("tokens", "ties")}
        versions = {"tinystory": tinystory.__version__, "written_with": chat.version}
        fields = {"file": str(file), "ok": ok, **totals, "nodes": rows, "versions": versions}
        print(json.dumps(fields, ensure_ascii=False))
    else:
        print(visible(_summary(rows, len(turns))))
    return 0 if ok else 1


class _Models:
    """Loads the model of each turn; the last one stays loaded."""

    def __init__(self, options: ReplayOptions) -> None:
        self._options = options
        self._key: tuple[str, str] | None = None
        self._model: LoadedModel | None = None

    def get(self, turn: Turn, written: Written) -> LoadedModel:
        """Return the model of `-m`, or else the model that the turn names, if it ships with tinystory.

        Raises:
            CheckpointError: the model does not ship with tinystory, or is damaged.
            UsageError: the file names an unknown dtype.
        """
        from tinystory.story.replay import is_local

        name = self._options.with_model or written.model
        if not self._options.with_model and not is_local(name):
            raise CheckpointError(
                f"turn {turn.id} was written with the model {name} ({written.model_hash[:_HASH]}), which does not "
                "ship with tinystory\ngive its directory with -m: a replay opens no other model that a file names"
            )
        if written.dtype not in COMPUTED_DTYPES:
            raise UsageError(
                f"turn {turn.id} was computed in {shown(written.dtype)}; "
                f"dtype must be one of {', '.join(COMPUTED_DTYPES)}"
            )
        if self._model is None or self._key != (name, written.dtype):
            self._key, self._model = (name, written.dtype), load(name, written.dtype, self._options.device)
            warn(self._options, self._model.warnings)
        return self._model


def _replayed(tree: StoryTree, turns: list[Turn], registry: Registry, models: _Models) -> Iterator[dict[str, Any]]:
    """Yield one row for each turn, up to the first turn that differs."""
    from tinystory.story.replay import replay_turn

    for n_done, turn in enumerate(turns):
        written = turn.written
        assert written is not None
        _show_progress(n_done, len(turns))
        model = models.get(turn, written)
        same_model = model.hash == written.model_hash
        try:
            result = replay_turn(tree, turn, model, registry)
        except UsageError as error:
            raise UsageError(f"turn {turn.id}: {error}") from error
        ok = same_model and result.difference is None
        row = {
            "node": turn.id,
            "ok": ok,
            "checked": not result.unchecked,
            "unchecked": result.unchecked,
            "spec": written.spec,
            "seed": written.seed,
            "number": written.number,
            "tokens": result.tokens,
            "ties": result.ties,
            "finish_reason": written.finish_reason,
            "dtype": written.dtype,
            "model": model.name,
            "model_hash": model.hash,
            "recorded_model_hash": written.model_hash,
            "difference": result.difference and dataclasses.asdict(result.difference),
        }
        yield row
        if not ok:
            return


def _line(row: dict[str, Any]) -> str:
    """Return a turn as one line; if it differs, the reasons follow on lines of their own."""
    branch = f"/{row['number']}" if row["number"] else ""
    tokens = f"{row['tokens']} token{'' if row['tokens'] == 1 else 's'}"
    ties = f" · {_ties(row['ties'])}" if row["ties"] else ""
    verdict = "differs" if not row["ok"] else "ok" if row["checked"] else f"not checked: {row['unchecked']}"
    line = f"turn {row['node']} · {row['spec']} · seed {row['seed']}{branch} · {tokens}{ties} · {verdict}"
    return "\n".join([line, *(f"  {reason}" for reason in _reasons(row))])


def _reasons(row: dict[str, Any]) -> Iterator[str]:
    """Yield what differs from the record."""
    if row["recorded_model_hash"] != row["model_hash"]:
        recorded = row["recorded_model_hash"][:_HASH] or "(none)"
        yield f"another model: recorded {recorded}, {row['model']} is {row['model_hash'][:_HASH]}"
    difference = row["difference"]
    if difference:
        place = "" if difference["position"] is None else f"position {difference['position']}: "
        yield (
            f"{place}recorded {difference['recorded']}, picked {difference['found']}"
            f" (model {row['model_hash'][:_HASH]}, {row['dtype']}, {row['spec']}, seed {row['seed']})"
        )


def _summary(rows: list[dict[str, Any]], n_turns: int) -> str:
    tokens, ties = (sum(row[name] for row in rows) for name in ("tokens", "ties"))
    if not all(row["ok"] for row in rows):
        rest = n_turns - len(rows)
        return f"turn {rows[-1]['node']} is not as recorded" + (f"; {rest} more were not checked" if rest else "")
    unchecked = sum(not row["checked"] for row in rows)
    missed = f"; {unchecked} could not be checked" if unchecked else ""
    return f"{len(rows) - unchecked} of {n_turns} turns are as recorded: {tokens:,} tokens, {_ties(ties)}{missed}"


def _ties(n: int) -> str:
    return f"{n} numerical tie{'' if n == 1 else 's'}"


def _show_progress(n_done: int, n_turns: int) -> None:
    if sys.stderr.isatty() and not is_dumb():
        print(f"\r\x1b[Kreplaying turn {n_done + 1} of {n_turns}", end="", file=sys.stderr, flush=True)


def _clear_progress() -> None:
    if sys.stderr.isatty() and not is_dumb():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
