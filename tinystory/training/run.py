"""Keep a training run in a folder: its configuration with its history, its checkpoints, and its log.

run/run.json                 the configuration that is in force, its history, and the hashes of the stories
run/tokenizer.json           the vocabulary
run/metrics.jsonl            the log, one record a line; metrics.png and metrics.svg show it as plots
run/samples.txt              the stories that were written at each validation
run/step-001000/             an ordinary checkpoint, with the training state beside the weights
run/latest.json, best.json   the names of two of the checkpoints; latest and best are links to them

Knows files. Does not know what a training state holds, or how a step is computed.
"""

import functools
import json
import math
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

import tinystory
from tinystory.checkpoint.directory import STEP_NAME, name_checkpoint, named_checkpoint
from tinystory.checkpoint.save import save_checkpoint
from tinystory.errors import TinystoryError, UnreadableFile, UsageError
from tinystory.safe.name_lock import NameLock
from tinystory.safe.reading import read_json_object, shown
from tinystory.safe.writing import write_atomically
from tinystory.text.tokenizer import Tokenizer
from tinystory.training.config import RunConfig
from tinystory.training.state import COUNTERS, TrainState
from tinystory.training.step import averaged

__all__ = ["Run", "git_commit", "provenance"]

_PACKAGE = Path(tinystory.__file__).resolve().parent

_PARTLY_BEGUN = re.compile(r"\.run\.lock|\..*\.partial|\.DS_Store")
"""Files that do not make a folder one of another kind."""

_locks: dict[Path, NameLock] = {}
"""The locks of this process, by the folder of the run."""

_LOGS = ("metrics.jsonl", "metrics.png", "metrics.svg", "samples.txt", "tensorboard")


@dataclass(frozen=True)
class Run:
    """The folder of a run."""

    folder: Path

    def begin(self, config: RunConfig, tokenizer: Tokenizer) -> None:
        """Lock the folder, and write the configuration and the vocabulary of a new run.

        What an earlier start without a checkpoint has left in the folder is replaced, its logs too.

        Raises:
            UsageError: the folder has a run already, has other files, is in use, or cannot be written.
        """
        self._check_is_free()
        try:
            self.lock()
            for name in _LOGS:
                _delete(self.folder / name)
            self._write_json({**config.to_json(), "history": [], "stories": {}})
            write_atomically(self.folder / "tokenizer.json", tokenizer.to_json().encode())
        except OSError as error:
            raise UsageError(f"{self.folder} cannot be written: {error.strerror}") from error

    def _check_is_free(self) -> None:
        """Raise UsageError if a new run would replace anything in the folder."""
        try:
            names = [name for name in os.listdir(self.folder) if not _PARTLY_BEGUN.fullmatch(name)]
        except FileNotFoundError:
            return
        except OSError as error:
            raise UsageError(f"{self.folder} cannot be written: {error.strerror}") from error
        if self._checkpoints() or (self.folder / "latest").exists():
            raise UsageError(f"{self.folder} has a run already: continue it with --resume, or give another --out")
        try:
            RunConfig.from_json(self._content() if names else RunConfig().to_json())
        except (OSError, ValueError, TinystoryError) as error:
            raise UsageError(
                f"{self.folder} holds {', '.join(sorted(names)[:3])} and no run; give --out a new or an empty folder"
            ) from error

    def lock(self) -> None:
        """Lock the run for this process until `unlock`, or until the process ends.

        Raises:
            UsageError: another process trains this run.
            OSError: the folder cannot be written.
        """
        place = self.folder.resolve()
        lock = _locks.get(place) or NameLock.take(self.folder, "run")
        if lock is None:
            raise UsageError(f"another process trains {self.folder} now; wait for it, or stop it with Ctrl-C")
        _locks[place] = lock

    def unlock(self) -> None:
        """Let other processes train this run."""
        if lock := _locks.pop(self.folder.resolve(), None):
            lock.release()

    def configuration(self) -> tuple[RunConfig, Tokenizer]:
        """Return the configuration that is in force, and the vocabulary.

        Raises:
            UsageError: the folder holds no run.
        """
        try:
            config = RunConfig.from_json(self._content())
        except (OSError, ValueError, UsageError, UnreadableFile) as error:
            raise UsageError(f"{self.folder} holds no run to resume: its run.json cannot be read ({error})") from error
        return config, Tokenizer.from_file(self.folder / "tokenizer.json")

    def story_hashes(self) -> dict[str, str]:
        """Return the hashes of the stories with which the run was begun; empty for a run of an older version.

        Raises:
            UsageError: `run.json` has something else in their place.
        """
        hashes = self._content().get("stories") or {}
        if not isinstance(hashes, dict) or not all(isinstance(value, str) for value in hashes.values()):
            raise UsageError(
                f"{self.folder / 'run.json'} is damaged: stories must be a hash for each part, not {shown(hashes)}; "
                "copy it from a backup, or begin a new run with --out"
            )
        return {part: hashes[part] for part in ("train", "valid") if part in hashes} if "train" in hashes else {}

    def remember(self, config: RunConfig, step: int, story_hashes: Mapping[str, str]) -> dict[str, tuple[Any, Any]]:
        """Write what is in force from now on to `run.json`, and what has changed to the history in it.

        Returns:
            The fields that have changed: name -> (old value, new value).

        Raises:
            TinystoryError: the file cannot be written.
        """
        content = self._content()
        old, new = RunConfig.from_json(content).flat(), config.flat()
        changed = {name: (old[name], value) for name, value in new.items() if value != old[name]}
        history = content.get("history")
        history = history if isinstance(history, list) else []
        if changed:
            history = [*history, {"step": step, "changed": {name: list(pair) for name, pair in changed.items()}}]
        now = {**config.to_json(), "history": history, "stories": dict(story_hashes)}
        if now != content:
            try:
                self._write_json(now)
            except OSError as error:
                raise TinystoryError(f"cannot write {self.folder / 'run.json'}: {error.strerror}") from error
        return changed

    def _content(self) -> dict[str, Any]:
        return read_json_object(self.folder / "run.json")

    def _write_json(self, content: Mapping[str, Any]) -> None:
        write_atomically(self.folder / "run.json", (json.dumps(content, indent=2) + "\n").encode())

    def _checkpoints(self) -> list[Path]:
        """Return the checkpoints in the folder, by step; other folders beside them do not count."""
        folders = [path for path in self.folder.glob("step-*") if STEP_NAME.fullmatch(path.name) and path.is_dir()]
        return sorted(folders, key=lambda path: int(path.name.removeprefix("step-")))

    @property
    def latest(self) -> Path:
        """The newest checkpoint.

        Raises:
            UsageError: the run has no checkpoint yet.
        """
        found = self.named("latest") or next(reversed(self._checkpoints()), None)
        if found is None:
            raise UsageError(f"{self.folder} has no checkpoint yet; start the run again with --out")
        return found

    def named(self, name: str) -> Path | None:
        """Return the checkpoint that `NAME.json` or the link `NAME` names, or a copy of it; None if there is none."""
        link = self.folder / name
        return named_checkpoint(self.folder, name) or (link.resolve() if link.exists() else None)

    def save(self, state: TrainState, tokenizer: Tokenizer, provenance: Mapping[str, Any], *, keep: int) -> Path:
        """Save a checkpoint as `step-NNNNNN`, name it the latest, and delete old ones.

        After a crash at any moment, the latest is a whole checkpoint.

        Args:
            state: weights and training state.
            tokenizer: the vocabulary.
            provenance: the content of `tinystory.json`.
            keep: how many of the newest checkpoints stay, besides the best one.

        Returns:
            The folder of the checkpoint.

        Raises:
            TinystoryError: the disk is full or cannot be written; earlier checkpoints are untouched.
        """
        directory = self.folder / f"step-{state.step:06d}"
        beside = state.files()
        with averaged(state.model, state.average):
            save_checkpoint(
                directory,
                state.model,
                tokenizer.to_json(),
                bos_id=tokenizer.bos_id,
                eos_ids=tokenizer.eos_ids,
                provenance=provenance,
                extra_files=beside,
            )
        self._name("latest", directory)
        self._delete_old(directory, keep)
        return directory

    def add_validation(
        self, directory: Path, state: TrainState, provenance: Mapping[str, Any], *, best: bool, keep: int
    ) -> None:
        """Add to a checkpoint what its validation has found, and delete old ones.

        Args:
            directory: what `save` has returned.
            state: its `best_loss` counts this validation.
            provenance: the content of `tinystory.json`, with the figures.
            best: name this checkpoint the best.
            keep: how many of the newest checkpoints stay, besides the best one.

        Raises:
            TinystoryError: the disk is full or cannot be written.
        """
        try:
            write_atomically(directory / COUNTERS, state.counters())
            text = json.dumps(provenance, indent=2, ensure_ascii=False) + "\n"
            write_atomically(directory / "tinystory.json", text.encode())
        except OSError as error:
            raise TinystoryError(f"cannot write {directory}: {error.strerror}") from error
        if best:
            self._name("best", directory)
            self._delete_old(directory, keep)

    def _delete_old(self, latest: Path, keep: int) -> None:
        best = self.named("best")
        for old in self._checkpoints()[:-keep]:
            if old.name != latest.name and (best is None or old.name != best.name):
                shutil.rmtree(old, ignore_errors=True)

    def _name(self, name: str, directory: Path) -> None:
        try:
            name_checkpoint(self.folder, name, directory.name)
        except OSError as error:
            raise TinystoryError(f"cannot write {self.folder}: {error.strerror}") from error

    def log(self, record: Mapping[str, Any]) -> None:
        """Append a record to `metrics.jsonl`; raise TinystoryError if it cannot be written."""
        self._append("metrics.jsonl", json.dumps(record) + "\n")

    def keep_samples(self, step: int, stories: Mapping[str, str]) -> None:
        """Append stories (spec -> text) to `samples.txt`; raise TinystoryError if it cannot be written."""
        self._append("samples.txt", "".join(f"== step {step}, {spec}\n{text}\n\n" for spec, text in stories.items()))

    def forget_after(self, step: int) -> None:
        """Delete log lines and samples after a step, because a run that is resumed from this step writes them again."""
        self._rewrite("metrics.jsonl", lambda lines: [line for line in lines if _step_of(line) <= step])
        self._rewrite("samples.txt", lambda lines: list(takewhile(lambda line: _sample_step(line) <= step, lines)))

    def _rewrite(self, name: str, kept: Callable[[list[str]], list[str]]) -> None:
        path = self.folder / name
        if path.exists():
            text = path.read_text(encoding="utf-8", errors="replace")
            left = "".join(f"{line}\n" for line in kept(text.split("\n")[:-1]))  # without a line that was cut off
            if left != text:
                try:
                    write_atomically(path, left.encode())
                except OSError as error:
                    raise TinystoryError(f"cannot write {path}: {error.strerror}") from error

    def _append(self, name: str, text: str) -> None:
        try:
            with (self.folder / name).open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise TinystoryError(f"cannot write {self.folder / name}: {error.strerror}") from error


def _step_of(line: str) -> float:
    """Return the step of a log line; infinity for a line that a crash has cut off, so that it is deleted."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _sample_step(line: str) -> int:
    """Return the step of the heading of a sample, and 0 for any other line."""
    match = re.match(r"== step (\d+), ", line)
    return int(match[1]) if match else 0


def _delete(path: Path) -> None:
    """Delete a file or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def provenance(config: RunConfig, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a checkpoint's `tinystory.json`. For data files it has only the names, not the folders."""
    stored = config.to_json()
    stored["data"] |= {name: [Path(source).name for source in stored["data"][name]] for name in ("data", "valid")}
    return dict(record) | {
        "seconds": round(record["seconds"]),
        "run": stored,
        "git_commit": _own_commit(),
        "versions": {"tinystory": tinystory.__version__, "torch": torch.__version__},
    }


@functools.cache
def _own_commit() -> str | None:
    """Return the commit of the code that runs; a later one is not in this process."""
    return git_commit()


def git_commit(package: Path = _PACKAGE) -> str | None:
    """Return the commit of the checkout that a package is in, or None if it is in none, or git is not installed.

    A package that is installed below the repository of another project is not in a checkout of its own.
    """
    command = ["git", "rev-parse", "--show-toplevel", "HEAD"]
    try:
        result = subprocess.run(command, cwd=package.parent, capture_output=True, text=True, check=False)
    except OSError:
        return None
    if result.returncode:  # no repository, or no commit yet
        return None
    top, commit = result.stdout.splitlines()
    return commit if Path(top).resolve() == package.parent.resolve() else None
