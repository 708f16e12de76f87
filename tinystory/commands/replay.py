"""`tinystory replay`: check a session's stories against the model and the decoders that wrote them."""

import dataclasses
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tinystory
from tinystory.commands.shared.groups import DecoderFileOptions
from tinystory.decoding.plugins import Registry, discover
from tinystory.errors import CheckpointError, UsageError
from tinystory.safe.showing import visible
from tinystory.session.loading import DTYPES, LoadedModel, load
from tinystory.story.session_file import load_session
from tinystory.story.tree import StoryTree, Turn, Written

__all__ = ["ReplayOptions", "run"]

_HASH = 12


@dataclass(frozen=True, kw_only=True)
class ReplayOptions(DecoderFileOptions):
    """The options of `tinystory replay`.

    Attributes:
        file: a session, or a story exported as .json.
        with_model: the model to replay with; None is the model that the file names.
        device: where the model runs, as torch names it.
        json: print one JSON object.
    """

    file: Path
    with_model: str | None
    device: str
    json: bool


def run(args: ReplayOptions) -> int:
    """Replay and print; 1 where something differs."""
    session = load_session(args.file)
    registry = discover(args.decoder_file)
    turns = [turn for turn in session.tree.turns.values() if turn.written is not None]
    rows: list[dict[str, Any]] = []
    models = _Models(args)
    for row in _replayed(session.tree, turns, registry, models):
        rows.append(row)
        _clear_progress()
        if not args.json:
            print(visible(_line(row)))
    _clear_progress()
    ok = all(row["ok"] for row in rows)
    if args.json:
        totals = {name: sum(row[name] for row in rows) for name in ("tokens", "ties")}
        versions = {"tinystory": tinystory.__version__, "written_with": session.version}
        fields = {"file": str(args.file), "ok": ok, **totals, "nodes": rows, "versions": versions}
        print(json.dumps(fields, ensure_ascii=False))
    else:
        print(visible(_summary(rows, len(turns))))
    return 0 if ok else 1


class _Models:
    """The models that turns ask for, the latest one kept loaded."""

    def __init__(self, args: ReplayOptions) -> None:
        self._args = args
        self._key: tuple[str, str] | None = None
        self._model: LoadedModel | None = None

    def get(self, turn: Turn, written: Written) -> LoadedModel:
        """The model of `-m`, else the one that the turn names, if it ships with tinystory.

        Raises:
            CheckpointError: it is not, or is damaged.
            UsageError: the file names a dtype that there is not.
        """
        from tinystory.story.replay import is_local

        name = self._args.with_model or written.model
        if not self._args.with_model and not is_local(name):
            raise CheckpointError(
                f"node {turn.id} was written with the model {name} ({written.model_hash[:_HASH]}), which does not "
                "ship with tinystory\nsay with -m where it is: a replay opens nothing else that a file names"
            )
        if written.dtype not in DTYPES:
            raise UsageError(f"node {turn.id} was computed in {written.dtype!r}; there are {', '.join(DTYPES)}")
        if self._model is None or self._key != (name, written.dtype):
            self._key, self._model = (name, written.dtype), load(name, written.dtype, self._args.device)
        return self._model


def _replayed(tree: StoryTree, turns: list[Turn], registry: Registry, models: _Models) -> Iterator[dict[str, Any]]:
    """A row a turn, up to the first that differs."""
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
            raise UsageError(f"node {turn.id}: {error}") from error
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
    """A turn as a line; two where something differs."""
    sibling = f"/{row['number']}" if row["number"] else ""
    tokens = f"{row['tokens']} token{'' if row['tokens'] == 1 else 's'}"
    ties = f" · {_ties(row['ties'])}" if row["ties"] else ""
    verdict = "differs" if not row["ok"] else "ok" if row["checked"] else f"not checked: {row['unchecked']}"
    line = f"node {row['node']} · {row['spec']} · seed {row['seed']}{sibling} · {tokens}{ties} · {verdict}"
    return "\n".join([line, *(f"  {reason}" for reason in _reasons(row))])


def _reasons(row: dict[str, Any]) -> Iterator[str]:
    """What is not as recorded."""
    recorded = row["recorded_model_hash"][:_HASH] or "(none)"
    if row["recorded_model_hash"] != row["model_hash"]:
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
        return f"node {rows[-1]['node']} is not as recorded" + (f"; {rest} more were not looked at" if rest else "")
    unchecked = sum(not row["checked"] for row in rows)
    missed = f"; {unchecked} could not be checked" if unchecked else ""
    return f"{len(rows) - unchecked} of {n_turns} turns are as recorded: {tokens:,} tokens, {_ties(ties)}{missed}"


def _ties(n: int) -> str:
    return f"{n} numerical tie{'' if n == 1 else 's'}"


def _show_progress(n_done: int, n_turns: int) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[Kreplaying turn {n_done + 1} of {n_turns}", end="", file=sys.stderr, flush=True)


def _clear_progress() -> None:
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
