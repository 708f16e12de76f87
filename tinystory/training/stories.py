"""Load the stories of a run: from a folder of prepared stories, or from sources that are tokenised into `RUN/data`.

A run that goes on takes the stories with which it was begun, or ends. Knows data and the folder of a run. Does not know
models or steps.
"""

import dataclasses
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinystory.data.prepare import overlap, prepare
from tinystory.data.selection import NothingSelected, Selection
from tinystory.data.shards import MANIFEST, TokenShards, fingerprint
from tinystory.errors import UsageError
from tinystory.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tinystory.training.config import DataConfig, RunConfig

__all__ = ["RunStories", "as_prepared", "field_text", "load_stories", "open_stories"]

Report = Callable[[str], object]
"""Gets lines about the stories that a user should see."""

_OF_THE_FOLDER = ("valid", "column", "split", "separator", "fraction", "test_split", "split_seed")
"""The fields that were decided when stories were prepared."""


@dataclass(frozen=True)
class RunStories:
    """The tokenised stories of a run.

    Attributes:
        training: the stories to learn from.
        valid: the stories to validate with; None for a run without validation.
        hashes: the SHA-256 of the content of each part, by its name.
    """

    training: TokenShards
    valid: TokenShards | None
    hashes: Mapping[str, str]

    @classmethod
    def open(cls, folder: Path, parts: Collection[str]) -> "RunStories":
        """Open prepared stories; `parts` may be `train` and `valid`.

        Raises:
            UsageError: a part is missing or damaged.
        """
        opened = {part: TokenShards(folder / part) for part in parts}
        hashes = {part: shards.content_hash() for part, shards in opened.items()}
        return cls(opened["train"], opened.get("valid"), hashes)

    def verify(self) -> None:
        """Read all files and compare them with their checksums; raise UsageError for a difference."""
        for shards in (self.training, self.valid):
            if shards is not None:
                shards.verify()


def prepared_folder(sources: Collection[str]) -> Path | None:
    """Return the folder of prepared stories that the sources are, or None if they are to be tokenised.

    Raises:
        UsageError: a folder of prepared stories is one of several sources.
    """
    folders = [source for source in sources if os.path.isfile(os.path.join(source, "train", MANIFEST))]
    if folders and len(sources) > 1:
        raise UsageError(f"{folders[0]} holds prepared stories; it must be the only --data")
    return Path(folders[0]) if folders else None


def as_prepared(config: "RunConfig", from_preset: Collection[str], given: Collection[str]) -> "RunConfig":
    """Return the configuration with the choices of a folder of prepared stories, if its data is one.

    Args:
        config: what flags, file, preset and defaults give.
        from_preset: the fields that the preset has.
        given: the fields that flags or the file have.

    Raises:
        UsageError: a chosen field contradicts the folder, or the folder has no validation stories.
    """
    folder = prepared_folder(config.data.data)
    if folder is None:
        return config
    choices, chosen = _choices_of(folder, config.data), {*from_preset, *given}
    without_validation = "test_split" in chosen and not config.data.test_split
    if without_validation and not choices["test_split"]:
        choices["valid"] = ()
    if choices["valid"] and "test_split" not in given:
        chosen.discard("test_split")  # it is for stories without validation stories of their own
    wrong = [name for name in _OF_THE_FOLDER if name in chosen and getattr(config.data, name) != choices[name]]
    if wrong:
        wanted = ", ".join(f"{name} {field_text(getattr(config.data, name))}" for name in wrong)
        there = ", ".join(f"{name} {field_text(choices[name])}" for name in wrong)
        flags = " ".join("--" + name.replace("_", "-") for name in wrong)
        raise UsageError(
            f"{folder} was prepared with {there}, not with {wanted}; "
            f"prepare it again (scripts/prepare_data.py {flags}), or give these fields as it has them"
        )
    if not (choices["valid"] or choices["test_split"] or without_validation):
        raise UsageError(
            f"{folder} has no validation stories: prepare it with --valid or --test-split, "
            "or give --test-split 0 to train without validation"
        )
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **choices))


def _choices_of(folder: Path, data: "DataConfig") -> dict[str, Any]:
    """Return the fields of data that were decided when a folder was prepared; `data` has those that do not matter."""
    recipe = TokenShards(folder / "train").recipe
    selection = recipe.get("selection") or {"fraction": 1.0, "test_split": 0.0, "seed": data.split_seed}
    has_valid = (folder / "valid" / MANIFEST).is_file()
    try:
        splits = [str(source["split"]) for source in recipe["sources"] if "split" in source]
        return {
            "valid": (str(folder / "valid"),) if has_valid and not selection["test_split"] else (),
            "column": str(recipe.get("column") or ""),
            "split": splits[0] if splits else data.split,
            "separator": str(recipe.get("separator") or ""),
            "fraction": float(selection["fraction"]),
            "test_split": float(selection["test_split"]) if has_valid else 0.0,
            "split_seed": int(selection["seed"]),
        }
    except (LookupError, TypeError, ValueError) as error:
        raise UsageError(f"{folder / 'train' / MANIFEST} is damaged; prepare the stories again") from error


def field_text(value: object) -> str:
    """Return the value of a field as a message shows it."""
    return " ".join(value) or "none" if isinstance(value, tuple) else str(value) or "none"


def load_stories(
    run_folder: Path, data: "DataConfig", tokenizer: Tokenizer, begun: Mapping[str, str] | None, report: Report
) -> RunStories:
    """Return the stories of a run, and tokenise them first if that is not done yet. One process calls this.

    Args:
        run_folder: the folder of the run; stories are tokenised into its folder `data`.
        data: what the run trains on.
        tokenizer: its vocabulary.
        begun: for a run that goes on, the hashes of its stories, which are empty in old runs; None for a new run.
        report: gets a line about each part, and about stories in both parts.

    Raises:
        UsageError: a source does not exist, or the stories are of another vocabulary, damaged, or not those with which
            the run was begun.
    """
    prepared = prepared_folder(data.data)
    folder = prepared or run_folder / "data"
    stories = None if begun is None else _opened(run_folder, data, begun)
    if prepared is None and (stories is None or (begun and begun != stories.hashes)):
        prepare_stories(folder, data, tokenizer, report)
        stories = _opened(run_folder, data, begun)
    if begun and (stories is None or begun != stories.hashes):
        raise UsageError(
            f"the stories in {folder} are not those with which this run was begun, so it cannot go on; "
            "give it those stories again, or start a new run with --out"
        )
    stories = stories or open_stories(run_folder, data, begun)  # which says what is wrong
    recipes = [shards.recipe for shards in (stories.training, stories.valid) if shards is not None]
    if {recipe["tokenizer"] for recipe in recipes} != {fingerprint(tokenizer)}:
        raise UsageError(
            f"{folder} was prepared with another vocabulary; give the same --tokenizer, or prepare it again"
        )
    ends = tokenizer.bos_id, min(tokenizer.eos_ids, default=None)
    if other := next((pair for pair in map(_bos_and_eos, recipes) if pair != ends), None):
        raise UsageError(
            f"the stories in {folder} have BOS and EOS {other[0]} and {other[1]}, but the vocabulary has {ends[0]} and "
            f"{ends[1]}; give the same --tokenizer, or prepare them again"
        )
    if begun is not None:
        stories.verify()
    elif data.valid and stories.valid is not None and (n_shared := overlap(stories.training, stories.valid)):
        report(f"{n_shared:,} of {len(stories.valid):,} validation stories are training stories, too")
    return stories


def _bos_and_eos(recipe: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the ids before and after each prepared story."""
    return recipe.get("bos_id"), recipe.get("eos_id")


def open_stories(run_folder: Path, data: "DataConfig", begun: Mapping[str, str] | None) -> RunStories:
    """Return the stories that `load_stories` has checked; the arguments are the same.

    Raises:
        UsageError: a part is missing or damaged.
    """
    folder = prepared_folder(data.data) or run_folder / "data"
    if begun:
        return RunStories.open(folder, begun)
    validates = (data.valid or data.test_split) and (folder / "valid" / MANIFEST).is_file()
    return RunStories.open(folder, ["train", "valid"] if validates else ["train"])


def _opened(run_folder: Path, data: "DataConfig", begun: Mapping[str, str] | None) -> RunStories | None:
    """Return the stories, or None if a part of them is missing or damaged."""
    try:
        return open_stories(run_folder, data, begun)
    except UsageError:
        return None


def prepare_stories(folder: Path, data: "DataConfig", tokenizer: Tokenizer, report: Report) -> None:
    """Tokenise training and validation stories into two folders, unless the folders have them already.

    Without a validation story, the folder gets no part `valid`.

    Raises:
        UsageError: a source does not exist, or its only story is perhaps many, with an unknown text between them.
    """
    chosen = Selection(data.fraction, 0.0 if data.valid else data.test_split, "train", data.split_seed)
    parts = [("train", data.data, chosen, data.split)]
    if data.valid:
        parts.append(("valid", data.valid, Selection(), "validation"))
    elif data.test_split:
        parts.append(("valid", data.data, dataclasses.replace(chosen, part="test"), data.split))
    for part, sources, selection, split in parts:
        try:
            shards = prepare(
                sources, tokenizer, folder / part, split=split, column=data.column or None,
                separator=data.separator or None, streaming=data.streaming, selection=selection,
            )  # fmt: skip
        except NothingSelected:
            if part == "train":
                raise
            shutil.rmtree(folder / part, ignore_errors=True)  # an earlier start had other sources
            report(
                f"no story is held out, because there are too few for --test-split {data.test_split:g}, "
                "so this run has no validation; give --valid, or a larger --test-split"
            )
        else:
            notes = shards.report.notes
            if part == "train" and len(shards) == 1 and notes and (data.valid or data.test_split):
                raise UsageError(f"there is only one story to learn from: {notes[0]}")
            report(f"{part} stories: {shards.report}")
            for note in notes:
                if part == "train" or data.valid:  # else the same source was told already
                    report(f"  {note}")
