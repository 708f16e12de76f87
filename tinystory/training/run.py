"""Keep a training run in a folder: its configuration, its checkpoints with the training state, and its log.

run/run.json                 the configuration
run/tokenizer.json           the vocabulary
run/metrics.jsonl            the log, one record a line; metrics.png and metrics.svg show it as plots
run/samples.txt              the stories that were written at each validation
run/step-001000/             an ordinary checkpoint, with the training state beside the weights
run/latest, run/best         links to two of the checkpoints

Knows files and the state of a run. Does not know how a step is computed.
"""

import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from tinystory.checkpoint import load_model, read_header
from tinystory.checkpoint.save import save_checkpoint
from tinystory.errors import CheckpointError, TinystoryError, UsageError
from tinystory.model.transformer import Transformer
from tinystory.safe.writing import replace_link, write_atomically
from tinystory.text.tokenizer import Tokenizer
from tinystory.training.config import RunConfig
from tinystory.training.distributed import Ranks
from tinystory.training.step import averaged

__all__ = ["Run", "TrainState"]

_TENSORS, _COUNTERS = "training_state.safetensors", "training_state.json"


@dataclass
class TrainState:
    """Everything that a resumed run needs so that its next step is the same.

    Attributes:
        model: has the raw weights, which the optimizers change.
        optimizers: the optimizers by name.
        average: exponential average of the weights, by parameter name; empty if averaging is off.
        step: how many optimizer steps are done.
        n_tokens: how many tokens were predicted.
        epoch: how many passes over the data are done.
        batch: how many batches of this epoch are done; their stories follow from the seed and the epoch.
        seconds: seconds spent on steps.
        best_loss: lowest validation loss so far, in nats per token.
    """

    model: Transformer
    optimizers: dict[str, torch.optim.Optimizer]
    average: dict[str, Tensor] = field(default_factory=dict)
    step: int = 0
    n_tokens: int = 0
    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    best_loss: float = math.inf

    _NUMBERS = ("step", "n_tokens", "epoch", "batch", "seconds", "best_loss")

    @staticmethod
    def step_of(directory: Path) -> int:
        """Return the step at which a checkpoint was saved.

        Raises:
            CheckpointError: the checkpoint has no training state.
        """
        try:
            return int(json.loads((directory / _COUNTERS).read_text(encoding="utf-8"))["step"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{directory} has no training state, so no run can go on from it") from error

    def files(self) -> dict[str, bytes]:
        """Return optimizer moments, random state and counters as files to save beside the weights: name -> content."""
        tensors = {"rng.cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            tensors["rng.cuda"] = torch.cuda.get_rng_state()
        for kind, optimizer in self.optimizers.items():
            for name, parameter in self._parameters(optimizer):
                entries = optimizer.state.get(parameter, {})
                tensors |= {f"{kind}:{key}:{name}": torch.as_tensor(value) for key, value in entries.items()}
        if self.average:  # then the checkpoint itself has the averaged weights
            tensors |= {f"weights.{name}": p.detach() for name, p in self.model.named_parameters()}
        numbers = {name: getattr(self, name) for name in self._NUMBERS}
        if not math.isfinite(self.best_loss):
            numbers["best_loss"] = None
        return {
            _TENSORS: save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}),
            _COUNTERS: (json.dumps(numbers) + "\n").encode(),
        }

    def _parameters(self, optimizer: torch.optim.Optimizer) -> list[tuple[str, Tensor]]:
        """Return the parameters of an optimizer with their names, in the order of the optimizer."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        return [(names[id(p)], p) for group in optimizer.param_groups for p in group["params"]]

    def load(self, directory: Path, ranks: Ranks, seed: int) -> None:
        """Load a checkpoint and the files that `files` made beside it.

        The first rank, which wrote the random state, gets it back; the others make a new one from seed, rank and step.

        Raises:
            CheckpointError: the checkpoint is missing or damaged, has another model, or has no training state.
        """
        saved = load_model(read_header(directory), device=str(ranks.device))
        if saved.config != self.model.config:
            raise CheckpointError(f"{directory} has another model than this run trains")
        weights = dict(saved.named_parameters())
        try:
            tensors = load_file(directory / _TENSORS)
            numbers = json.loads((directory / _COUNTERS).read_text(encoding="utf-8"))
            with torch.no_grad():
                for name, parameter in self.model.named_parameters():
                    parameter.copy_(tensors.get(f"weights.{name}", weights[name]))
                for name, tensor in self.average.items():
                    tensor.copy_(weights[name])
            for kind, optimizer in self.optimizers.items():
                state = optimizer.state_dict()
                state["state"] = {
                    index: moments
                    for index, (name, parameter) in enumerate(self._parameters(optimizer))
                    if (moments := _moments(tensors, kind, name, parameter))
                }
                optimizer.load_state_dict(state)
            if numbers["best_loss"] is None:
                numbers["best_loss"] = math.inf
            for name in self._NUMBERS:
                setattr(self, name, numbers[name])
            if ranks.first:
                torch.set_rng_state(tensors["rng.cpu"])
                if ranks.device.type == "cuda" and "rng.cuda" in tensors:
                    torch.cuda.set_rng_state(tensors["rng.cuda"])
            else:
                torch.manual_seed(hash((seed, ranks.rank, self.step)) % 2**63)
        except Exception as error:  # safetensors, json and torch each raise their own
            raise CheckpointError(
                f"{directory} has weights, but no training state that this run can load: {error}"
            ) from error


def _moments(tensors: Mapping[str, Tensor], kind: str, name: str, parameter: Tensor) -> dict[str, Tensor]:
    """Return the saved moments of a parameter; empty if another kind of optimizer had it."""
    moments = {}
    for key in ("step", "exp_avg", "exp_avg_sq", "momentum_buffer"):
        tensor = tensors.get(f"{kind}:{key}:{name}")
        if tensor is not None:
            if key != "step" and tensor.shape != parameter.shape:
                raise ValueError(f"{key} of {name} has the shape {tuple(tensor.shape)}")
            moments[key] = tensor
    return moments


@dataclass(frozen=True)
class Run:
    """The folder of a run."""

    folder: Path

    def begin(self, config: RunConfig, tokenizer: Tokenizer) -> None:
        """Write the configuration and the vocabulary of a new run.

        Raises:
            UsageError: the folder has a run already, or cannot be written.
        """
        if (self.folder / "latest").exists():
            raise UsageError(f"{self.folder} has a run already: continue it with --resume, or give another --out")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder / "tokenizer.json", tokenizer.to_json().encode())
            write_atomically(self.folder / "run.json", (json.dumps(config.to_json(), indent=2) + "\n").encode())
        except OSError as error:
            raise UsageError(f"{self.folder} cannot be written: {error.strerror}") from error

    def configuration(self) -> tuple[RunConfig, Tokenizer]:
        """Return the configuration and the vocabulary with which the run was begun.

        Raises:
            UsageError: the folder holds no run.
        """
        try:
            content = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
            config = RunConfig.from_json(content)
        except (OSError, ValueError, AttributeError, UsageError) as error:
            raise UsageError(f"{self.folder} holds no run to resume: its run.json cannot be read ({error})") from error
        return config, Tokenizer.from_file(self.folder / "tokenizer.json")

    @property
    def latest(self) -> Path:
        """The newest checkpoint.

        Raises:
            UsageError: the run has no checkpoint yet.
        """
        if not (self.folder / "latest").exists():
            raise UsageError(f"{self.folder} has no checkpoint yet; start the run again with --out")
        return self.folder / "latest"

    def save(
        self, state: TrainState, tokenizer: Tokenizer, provenance: Mapping[str, Any], *, best: bool, keep: int
    ) -> Path:
        """Save a checkpoint and delete old ones.

        It is saved as `step-NNNNNN`, and `latest` becomes a link to it. After a crash at any moment, `latest` is a link
        to a whole checkpoint.

        Args:
            state: weights and training state.
            tokenizer: the vocabulary.
            provenance: the content of `tinystory.json`.
            best: also make `best` a link to it.
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
        try:
            for link in ("latest", "best") if best else ("latest",):
                replace_link(self.folder / link, directory.name)
        except OSError as error:
            raise TinystoryError(f"cannot write {self.folder}: {error.strerror}") from error
        kept = {directory.name, _target(self.folder / "best")}
        by_step = sorted(self.folder.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))
        for old in by_step[:-keep]:
            if old.name not in kept:
                shutil.rmtree(old, ignore_errors=True)
        return directory

    def log(self, record: Mapping[str, Any]) -> None:
        """Append a record to `metrics.jsonl`; raise TinystoryError if it cannot be written."""
        self._append("metrics.jsonl", json.dumps(record) + "\n")

    def keep_samples(self, text: str) -> None:
        """Append a text to `samples.txt`; raise TinystoryError if it cannot be written."""
        self._append("samples.txt", text)

    def forget_after(self, step: int) -> None:
        """Delete the log lines after a step, because a run that is resumed from this step writes them again."""
        path = self.folder / "metrics.jsonl"
        if path.exists():
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
            try:
                write_atomically(path, "".join(f"{line}\n" for line in kept).encode())
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


def _target(link: Path) -> str | None:
    return os.readlink(link) if link.is_symlink() else None
