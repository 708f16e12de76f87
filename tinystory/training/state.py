"""Hold everything that changes with a step, and keep it as files beside the weights of a checkpoint.

Knows tensors and the files of a training state. Does not know the folder of a run or how a step is computed.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from tinystory.checkpoint import load_model, read_header
from tinystory.errors import CheckpointError, UnreadableFile
from tinystory.model.transformer import Transformer
from tinystory.safe.reading import read_json_object, regular_file_size
from tinystory.training.distributed import Ranks

__all__ = ["COUNTERS", "TrainState"]

TENSORS, COUNTERS = "training_state.safetensors", "training_state.json"


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
        stale: how many validations have followed the best one.
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
    stale: int = 0

    _NUMBERS = ("step", "n_tokens", "epoch", "batch", "seconds", "best_loss", "stale")

    @staticmethod
    def step_of(directory: Path) -> int:
        """Return the step at which a checkpoint was saved.

        Raises:
            CheckpointError: the checkpoint has no training state.
        """
        try:
            return int(read_json_object(directory / COUNTERS)["step"])
        except (UnreadableFile, ValueError, KeyError, TypeError, OverflowError) as error:
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
        return {
            TENSORS: save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}),
            COUNTERS: self.counters(),
        }

    def counters(self) -> bytes:
        """Return the content of the file with the numbers of the state."""
        numbers = {name: getattr(self, name) for name in self._NUMBERS}
        if not math.isfinite(self.best_loss):
            numbers["best_loss"] = None
        return (json.dumps(numbers) + "\n").encode()

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
            regular_file_size(directory / TENSORS)  # the library would wait for a pipe
            tensors = load_file(directory / TENSORS)
            numbers = {"stale": 0} | read_json_object(directory / COUNTERS)  # older runs did not count it
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
