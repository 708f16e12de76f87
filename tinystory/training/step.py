"""Compute one training step: the learning rate, the loss, the gradients and the optimizers.

Knows tensors, batches and ranks. Does not know the folder of a run (`run.py`) or the loop (`loop.py`).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinystory.data.batches import Batch
from tinystory.errors import TinystoryError, UsageError
from tinystory.model.cross_entropy import IGNORE, stretch
from tinystory.model.transformer import Transformer
from tinystory.training.distributed import Ranks
from tinystory.training.schedule import SCHEDULES

__all__ = [
    "Losses", "TrainConfig", "autocast", "averaged", "backward", "evaluate_loss", "loss_sum", "make_optimizers",
    "optimizer_step", "update_average",
]  # fmt: skip


@dataclass(frozen=True)
class TrainConfig:
    """The optimisation of a run; it is stored with the run.

    Attributes:
        epochs: passes over the data, if steps is 0.
        steps: number of optimizer steps; 0 means that epochs gives it.
        max_minutes: end the run, and the schedule with it, after this many minutes; 0 is no limit.
        rows: rows of one step, over all ranks and micro-batches.
        micro_rows: rows of one forward pass on one rank; the gradients of a step add up over the passes.
        lr: peak learning rate of AdamW, for embeddings, norms and biases; for everything if muon_lr is 0.
        muon_lr: peak learning rate of Muon, for the matrices of the blocks; 0 trains these with AdamW.
        weight_decay: decoupled weight decay of the matrices.
        schedule: the learning rate after the warmup: "wsd" holds and then falls linearly to zero, "cosine" falls to a
            tenth, "constant" stays.
        warmup: share of the run in which the learning rate rises.
        decay: share of the run, at its end, in which the learning rate of "wsd" falls.
        clip: largest gradient norm; larger gradients are scaled down; 0 is off.
        dropout: dropout of embeddings and of the outputs of attention and feed-forward parts.
        ema: decay of an exponential average of the weights; the average is validated and saved; 0 is off.
        seed: seed of the first weights, of shuffling and of dropout.
        bf16: compute in bfloat16 (autocast); the weights stay float32.
        compile: compile the model with torch.compile.
        teachers: checkpoints with the same vocabulary; the run learns their mean probabilities besides the data
            (distillation, Hinton et al. 2015).
        distill: weight of the teachers in the loss, from 0 (only the data) to 1 (only the teachers).
    """

    epochs: int = 5
    steps: int = 0
    max_minutes: float = 0.0
    rows: int = 4
    micro_rows: int = 4
    lr: float = 3e-3
    muon_lr: float = 3e-3
    weight_decay: float = 0.1
    schedule: str = "wsd"
    warmup: float = 0.02
    decay: float = 0.7
    clip: float = 1.0
    dropout: float = 0.0
    ema: float = 0.0
    seed: int = 0
    bf16: bool = False
    compile: bool = False
    teachers: tuple[str, ...] = ()
    distill: float = 0.5

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            UsageError: a value is outside its range; the message gives the range.
        """
        for name in ("epochs", "rows", "micro_rows"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("warmup", "decay", "distill"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be from 0 to 1")
        for name in ("dropout", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be from 0 to below 1")
        for name in ("steps", "max_minutes", "lr", "muon_lr", "weight_decay", "clip"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be a number from 0")
        if not 0 <= self.seed < 2**63 - 2**20:  # a rank adds its number
            raise UsageError(f"seed is {self.seed}; it must be from 0 to below 2**63 - 2**20")
        if self.schedule not in SCHEDULES:
            raise UsageError(
                f"schedule is {self.schedule!r}; it must be {', '.join(SCHEDULES[:-1])} or {SCHEDULES[-1]}"
            )


def make_optimizers(model: Transformer, config: TrainConfig) -> dict[str, torch.optim.Optimizer]:
    """Return the optimizers by name: Muon (Jordan et al. 2024) for the matrices of the blocks, AdamW for the rest.

    Only matrices have weight decay; norms and biases have none.
    """
    named = dict(model.named_parameters())
    hidden = [p for name, p in named.items() if name.startswith("blocks.") and p.ndim == 2]
    if not config.muon_lr:
        hidden = []
    muon = {id(p) for p in hidden}
    rest = [p for p in named.values() if id(p) not in muon]
    groups = [
        {"params": [p for p in rest if p.ndim == 2], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim != 2], "weight_decay": 0.0},
    ]
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    optimizers: dict[str, torch.optim.Optimizer] = {
        "adamw": torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.95), fused=fused)
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
    """Return a context in which matrix products are bfloat16, if the config says so."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if config.bf16 else nullcontext()


def placed(batch: Batch, config: TrainConfig, device: torch.device) -> Batch:
    """Return the batch on its device; on a CPU without padding, because only a GPU or a compiled model needs it."""
    batch = batch.to(device)
    return batch.joined() if device.type == "cpu" and not config.compile else batch


def loss_sum(
    forward: Callable[..., Tensor], batch: Batch, teachers: Sequence[nn.Module] = (), distill: float = 0.0
) -> Tensor:
    """Return the sum of the negative log-likelihoods of a batch's labels: a float32 scalar, in nats.

    With teachers, it is the cross-entropy with a mixture: the mean of their probabilities has the weight `distill`, and
    the label has the rest. All logits are then in memory at once.
    """
    inputs = batch.token_ids, batch.positions, batch.mask()
    if not teachers:
        return forward(*inputs, batch.labels)
    logits, labels = forward(*inputs).flatten(0, 1).float(), batch.labels.flatten()
    scored = labels != IGNORE
    with torch.no_grad():
        target = logits.new_zeros(int(scored.sum()), logits.shape[-1])
        for teacher in teachers:
            target += teacher(*inputs).flatten(0, 1)[scored].float().softmax(-1)
        target *= distill / len(teachers)
        target[torch.arange(len(target), device=target.device), labels[scored]] += 1 - distill
    return F.cross_entropy(logits[scored], target, reduction="sum")


def backward(
    forward: nn.Module,
    micro_batches: Sequence[Batch],
    n_tokens: int,
    config: TrainConfig,
    ranks: Ranks,
    teachers: Sequence[nn.Module] = (),
) -> Tensor:
    """Add the gradient of the mean loss over a global batch to the gradients of the weights.

    Every token has the same weight, in any rank and micro-batch: each sum is divided by the global count, and
    multiplied by the number of ranks, because DistributedDataParallel averages over the ranks.

    Args:
        forward: the model, which may be compiled or wrapped.
        micro_batches: the batches of this rank: at least one, which may have only padding.
        n_tokens: predicted tokens of the global batch, over all ranks.
        config: the training of the run.
        ranks: all of them call this together.
        teachers: models to learn from besides the labels.

    Returns:
        The share of this rank in the mean loss, in nats per token. The shares of all ranks add up to the loss.
    """
    total = torch.zeros((), device=ranks.device)
    for index, batch in enumerate(micro_batches):
        last = index == len(micro_batches) - 1
        no_sync = getattr(forward, "no_sync", nullcontext)
        with nullcontext() if last else no_sync(), autocast(config, ranks.device):
            loss = loss_sum(forward, placed(batch, config, ranks.device), teachers, config.distill) / n_tokens
            (loss * ranks.size).backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    return total


def optimizer_step(
    model: nn.Module, optimizers: dict[str, torch.optim.Optimizer], scale: float, config: TrainConfig
) -> float:
    """Clip the gradients, step at `scale` times the peak learning rates, and clear the gradients.

    Returns:
        The norm of the gradient before clipping.

    Raises:
        TinystoryError: the norm is not finite; the weights are unchanged.
    """
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip or math.inf))
    if not math.isfinite(norm):
        raise TinystoryError(f"the norm of the gradient is {norm}; try a smaller --lr and --muon-lr")
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * scale
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return norm


@torch.no_grad()
def update_average(average: dict[str, Tensor], model: nn.Module, decay: float, step: int) -> None:
    """Add a step's weights to their exponential average, in place; in early steps the average forgets faster."""
    decay = min(decay, (step + 1) / (step + 10))
    for name, parameter in model.named_parameters():
        average[name].lerp_(parameter, 1 - decay)


@contextmanager
def averaged(model: nn.Module, average: dict[str, Tensor]) -> Iterator[None]:
    """Give the model the averaged weights inside the `with` block; an empty average changes nothing."""
    if not average:
        yield
        return
    raw = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(average[name])
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(raw[name])


@dataclass(frozen=True)
class Losses:
    """The result of a validation.

    Attributes:
        loss: nats per token.
        accuracy: share of tokens for which the most likely token is right, from 0 to 1.
        n_tokens: how many tokens were predicted.
    """

    loss: float
    accuracy: float
    n_tokens: int

    @property
    def perplexity(self) -> float:
        """The exponential of the loss; infinite if it is too large for a float."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


@torch.no_grad()
def evaluate_loss(model: Transformer, loaded: Iterable[Batch], config: TrainConfig, ranks: Ranks) -> Losses:
    """Return loss and accuracy over batches, without dropout.

    Every rank brings its own batches, and all ranks get the same result.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64)  # on the CPU: not every device has float64
    with autocast(config, ranks.device):
        for batch in loaded:
            batch = placed(batch, config, ranks.device)
            scored = batch.labels != IGNORE
            hidden = model.hidden(batch.token_ids, batch.positions, batch.mask())[scored]
            n = stretch(len(hidden), model.config.vocab_size)
            for part, labels in zip(torch.split(hidden, n), torch.split(batch.labels[scored], n), strict=True):
                logits = model.head(part).float()
                loss = F.cross_entropy(logits, labels, reduction="sum")
                correct = (logits.argmax(-1) == labels).sum()
                sums += torch.stack((loss.cpu().double(), correct.cpu().double(), sums.new_tensor(len(labels))))
    model.train(was_training)
    loss_total, correct_total, n_tokens = ranks.sum(sums.to(ranks.device) if ranks.size > 1 else sums).tolist()
    n = max(n_tokens, 1)
    return Losses(loss_total / n, correct_total / n, int(n_tokens))
