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
from tinystory.safe.showing import visible
from tinystory.screen.facts import is_dumb
from tinystory.story.replay_session import SHOWN_HASH, replay_session, written_turns
from tinystory.story.saved_chat import SavedChat
from tinystory.story.session_file import load_session
from tinystory.studio.kept_sessions import find_session

__all__ = ["ReplayOptions", "run"]


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
    rows: list[dict[str, Any]] = []
    for row in apart(_replayed(chat, registry, options)):
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
        print(visible(_summary(rows, len(written_turns(chat)))))
    return 0 if ok else 1


def _replayed(chat: SavedChat, registry: Registry, options: ReplayOptions) -> Iterator[dict[str, Any]]:
    """Yield one row for each turn, up to the first turn that differs."""
    turns, n_done = written_turns(chat), 0
    replayed = replay_session(
        chat,
        registry,
        model=options.with_model,
        device=options.device,
        tell=lambda warnings: warn(options, warnings),
    )
    while True:
        _show_progress(n_done, len(turns))
        one = next(replayed, None)
        if one is None:
            return
        n_done += 1
        result, written = one.result, one.written
        yield {
            "node": one.turn.id,
            "ok": one.ok,
            "checked": not result.unchecked,
            "unchecked": result.unchecked,
            "spec": written.spec,
            "seed": written.seed,
            "number": written.number,
            "tokens": result.tokens,
            "ties": result.ties,
            "finish_reason": written.finish_reason,
            "dtype": written.dtype,
            "model": one.model.name,
            "model_hash": one.model.hash,
            "recorded_model_hash": written.model_hash,
            "difference": result.difference and dataclasses.asdict(result.difference),
        }


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
        recorded = row["recorded_model_hash"][:SHOWN_HASH] or "(none)"
        yield f"another model: recorded {recorded}, {row['model']} is {row['model_hash'][:SHOWN_HASH]}"
    difference = row["difference"]
    if difference:
        place = "" if difference["position"] is None else f"position {difference['position']}: "
        yield (
            f"{place}recorded {difference['recorded']}, picked {difference['found']}"
            f" (model {row['model_hash'][:SHOWN_HASH]}, {row['dtype']}, {row['spec']}, seed {row['seed']})"
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
