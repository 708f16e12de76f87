"""Training: the schedule, the optimizers, the loss, and a run's state that can be saved and resumed.

Knows tensors and steps; `scripts/train.py` owns the loop's printing and the command line.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from tinystory.checkpoint import load_model, read_header
from tinystory.checkpoint_save import save_checkpoint
from tinystory.data import IGNORE, Batch, Piece, batches, collate
from tinystory.errors import CheckpointError, UsageError
from tinystory.model import Transformer
from tinystory.tokenizer import Tokenizer

__all__ = [
    "TrainConfig", "TrainState", "evaluate_loss", "learning_rate_scale", "loss_sum", "make_optimizers", "save_run",
    "train_step",
]  # fmt: skip

_TENSORS, _COUNTERS_FILE = "training_state.safetensors", "training_state.json"


@dataclass(frozen=True)
class TrainConfig:
    """How a run is optimised; stored with it.

    Attributes:
        steps: optimizer steps in all.
        row_len: positions of a row.
        rows: rows of a step; `rows` × `row_len` positions, a few of them padding.
        micro_rows: rows of one forward pass; gradients of a step add up over them.
        lr: peak learning rate of AdamW (embeddings, norms, biases).
        muon_lr: peak learning rate of Muon (hidden matrices); 0 gives them to AdamW.
        weight_decay: decoupled, on matrices.
        warmup: share of the steps with a rising rate.
        decay: share of the steps, at the end, in which the rate falls linearly to zero.
        clip: largest gradient norm; 0 is off.
        dropout: of residual writes and embeddings.
        seed: of weights, shuffling and dropout.
        bf16: bfloat16 autocast.
        compile: `torch.compile` the model.
    """

    steps: int = 8000
    row_len: int = 512
    rows: int = 4
    micro_rows: int = 4
    lr: float = 3e-3
    muon_lr: float = 3e-3
    weight_decay: float = 0.1
    warmup: float = 0.02
    decay: float = 0.7
    clip: float = 1.0
    dropout: float = 0.0
    seed: int = 0
    bf16: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            UsageError: a value is out of range.
        """
        for name in ("steps", "row_len", "rows", "micro_rows"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("warmup", "decay", "dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be from 0 to 1")
        for name in ("lr", "muon_lr", "weight_decay", "clip"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be a number from 0")


def learning_rate_scale(step: int, config: TrainConfig) -> float:
    """Warm up, hold, decay linearly to zero: the factor on the peak rate at a step (from 0), in (0, 1]."""
    n_warmup = config.warmup * config.steps
    n_decay = config.decay * config.steps
    rising = (step + 1) / n_warmup if n_warmup > 0 else 1.0
    falling = (config.steps - step) / n_decay if n_decay > 0 else 1.0
    return min(1.0, rising, falling)


def make_optimizers(model: Transformer, config: TrainConfig) -> dict[str, torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the matrices inside the blocks, AdamW for the rest, by name."""
    named = dict(model.named_parameters())
    hidden = [p for name, p in named.items() if name.startswith("blocks.") and p.ndim == 2]
    if not config.muon_lr:
        hidden = []
    muon = {id(p) for p in hidden}
    rest = [p for p in named.values() if id(p) not in muon]
    decayed = [p for p in rest if p.ndim == 2]
    plain = [p for p in rest if p.ndim != 2]
    optimizers: dict[str, torch.optim.Optimizer] = {
        "adamw": torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": config.weight_decay},
                {"params": plain, "weight_decay": 0.0},
            ],
            lr=config.lr,
            betas=(0.9, 0.95),
        )
    }
    if hidden:
        optimizers["muon"] = torch.optim.Muon(
            hidden, lr=config.muon_lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
        )
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def autocast(config: TrainConfig, device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 matrix products where the config asks for them."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if config.bf16 else nullcontext()


def loss_sum(model: Callable[..., Tensor], batch: Batch) -> Tensor:
    """Sum of the negative log-likelihoods of a batch's labels, in nats; a scalar, float32."""
    logits = model(batch.token_ids, batch.positions, batch.mask())
    return F.cross_entropy(logits.flatten(0, 1).float(), batch.labels.flatten(), ignore_index=IGNORE, reduction="sum")


@torch.inference_mode()
def evaluate_loss(model: nn.Module, pieces: list[Piece], config: TrainConfig, device: torch.device) -> float:
    """Mean nats per token over all pieces, dropout off."""
    was_training = model.training
    model.eval()
    total, n_tokens = 0.0, 0
    with autocast(config, device):
        for rows in batches(pieces, config.row_len, config.micro_rows):
            batch = collate(pieces, rows, config.row_len).to(device)
            total += loss_sum(model, batch).item()
            n_tokens += batch.n_tokens
    model.train(was_training)
    return total / max(n_tokens, 1)


@dataclass
class TrainState:
    """One run: everything that has to survive a restart for the next step to be the same.

    The position in the data is `epoch` and `batch`: batches of an epoch follow from the seed alone.
    """

    model: Transformer
    optimizers: dict[str, torch.optim.Optimizer]
    step: int = 0
    n_tokens: int = 0
    epoch: int = 0
    batch: int = 0
    best_loss: float = math.inf
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)

    _COUNTERS = ("step", "n_tokens", "epoch", "batch", "best_loss", "seconds", "history")

    def files(self) -> dict[str, bytes]:
        """Optimizer moments, random state and counters as files, to lie beside the weights."""
        tensors = {"rng.cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            tensors["rng.cuda"] = torch.cuda.get_rng_state()
        for kind, optimizer in self.optimizers.items():
            for index, entries in optimizer.state_dict()["state"].items():
                tensors |= {f"{kind}.{index}.{key}": torch.as_tensor(value) for key, value in entries.items()}
        counters = {name: getattr(self, name) for name in self._COUNTERS}
        if not math.isfinite(self.best_loss):
            counters["best_loss"] = None
        return {
            _TENSORS: save_tensors({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}),
            _COUNTERS_FILE: (json.dumps(counters) + "\n").encode(),
        }

    def load(self, directory: Path) -> None:
        """Read a checkpoint with the files of `files` beside it into this run's model and optimizers.

        Raises:
            CheckpointError: the checkpoint is missing, damaged, or of another model.
        """
        device = next(self.model.parameters()).device
        saved = load_model(read_header(directory), device=str(device))
        if saved.config != self.model.config:
            raise CheckpointError(f"{directory} holds another model than this run trains")
        self.model.load_state_dict(saved.state_dict())
        try:
            tensors = load_tensors(directory / _TENSORS)
            counters = json.loads((directory / _COUNTERS_FILE).read_text(encoding="utf-8"))
            for kind, optimizer in self.optimizers.items():
                state = optimizer.state_dict()
                state["state"] = _moments(tensors, kind)
                optimizer.load_state_dict(state)
            torch.set_rng_state(tensors["rng.cpu"])
            if torch.cuda.is_available() and "rng.cuda" in tensors:
                torch.cuda.set_rng_state(tensors["rng.cuda"])
            if counters["best_loss"] is None:
                counters["best_loss"] = math.inf
            for name in self._COUNTERS:
                setattr(self, name, counters[name])
        except Exception as error:  # safetensors, json and torch each raise their own
            raise CheckpointError(f"{directory} has weights, but no training state to go on from: {error}") from error

    def batches_ahead(self, pieces: list[Piece], config: TrainConfig) -> Iterator[list[list[int]]]:
        """Yield the remaining batches without end, epoch after epoch, and keep the position up to date."""
        while True:
            order = batches(pieces, config.row_len, config.rows, seed=config.seed * 1_000_003 + self.epoch)
            while self.batch < len(order):
                rows = order[self.batch]
                self.batch += 1
                yield rows
            self.epoch, self.batch = self.epoch + 1, 0


def _moments(tensors: dict[str, Tensor], kind: str) -> dict[int, dict[str, Tensor]]:
    """Rebuild an optimizer's per-parameter state from flat names `kind.index.key`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(f"{kind}."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = tensor
    return state


def train_step(
    state: TrainState, forward: Callable[..., Tensor], pieces: list[Piece], rows: list[list[int]], config: TrainConfig
) -> tuple[float, float]:
    """One optimizer step over a batch: token-weighted loss, accumulated over micro-batches.

    Args:
        state: the run; its weights, moments and counters change.
        forward: the model, or its compiled form.
        pieces: the training pieces.
        rows: the step's rows, of piece indices.
        config: the run's config.

    Returns:
        Mean nats per token before the step, and the gradient norm before clipping.

    Raises:
        CheckpointError: the loss is not finite.
    """
    device = next(state.model.parameters()).device
    micro = [rows[start : start + config.micro_rows] for start in range(0, len(rows), config.micro_rows)]
    loaded = [collate(pieces, part, config.row_len).to(device) for part in micro]
    n_tokens = sum(batch.n_tokens for batch in loaded)
    total = 0.0
    for batch in loaded:
        with autocast(config, device):
            loss = loss_sum(forward, batch) / n_tokens
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    if not math.isfinite(total):
        raise CheckpointError(f"the loss is {total} at step {state.step} (epoch {state.epoch}, batch {state.batch})")
    norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), config.clip or math.inf).item()
    scale = learning_rate_scale(state.step, config)
    for optimizer in state.optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * scale
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    state.step += 1
    state.n_tokens += n_tokens
    return total, norm


def save_run(
    run: Path, state: TrainState, tokenizer: Tokenizer, provenance: Mapping[str, object], keep: int = 2
) -> Path:
    """Write the checkpoint `run/step-NNNNNN`, point the link `run/latest` at it, and keep the last few.

    A crash at any moment leaves `latest` at a whole checkpoint.

    Returns:
        The checkpoint's folder.
    """
    directory = run / f"step-{state.step:06d}"
    save_checkpoint(
        directory,
        state.model,
        tokenizer.to_json(),
        bos_id=tokenizer.bos_id,
        eos_ids=tokenizer.eos_ids,
        provenance=provenance,
        extra_files=state.files(),
    )
    link = run / ".latest"
    link.unlink(missing_ok=True)
    link.symlink_to(directory.name)
    link.replace(run / "latest")
    for old in sorted(run.glob("step-*"))[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return directory
