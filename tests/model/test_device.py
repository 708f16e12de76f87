"""Check that a device is tried before use, and that it is refused with the same message everywhere."""

from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import tinystory
from tinystory.checkpoint import load_model, read_header
from tinystory.checkpoint.load import meta_model
from tinystory.checkpoint.shipped import SHIPPED_MODELS
from tinystory.errors import UsageError
from tinystory.model.config import ModelConfig, RopeScaling
from tinystory.model.device import usable_device
from tinystory.model.transformer import Transformer, rope_tables
from tinystory.session.loading import load
from tinystory.session.native import NativeSession
from tinystory.training.distributed import joined


def test_a_device_that_works_is_returned():
    assert usable_device("cpu") == usable_device("cpu:0") == torch.device("cpu")


@pytest.mark.parametrize(
    "name", ["gpu", "", " ", "cuda:99", "cpu:x", "cpu:1", "meta", "xla", "hpu", "privateuseone", "mkldnn"]
)
def test_every_door_refuses_a_device_in_the_same_words(name):
    """Three modules once checked a device in three ways. One accepted `meta`, on which nothing can be computed."""

    def train():
        with joined(name):
            pass

    messages = set()
    for door in (
        lambda: usable_device(name),
        lambda: load_model(read_header(SHIPPED_MODELS["mini"]), device=name),
        lambda: load("mini", device=name),
        train,
    ):
        with pytest.raises(UsageError) as caught:
            door()
        messages.add(str(caught.value))
    assert messages == {f"device {name!r} is not available here; use cpu, which always works"}


class NoFloat64(TorchDispatchMode):
    """Refuse every float64 tensor off the CPU, as mps does."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "cpu":
                assert tensor.dtype != torch.float64, func
        return out


LLAMA3 = RopeScaling("llama3", 8.0, 1.0, 4.0, 16)
CONFIGS = [
    ModelConfig.llama(50, 2, 2, 16, 32, 24, n_kv_head=1, rope_scaling=LLAMA3),
    ModelConfig.gpt2(50, 2, 2, 16, 32),
]


@pytest.mark.parametrize("config", CONFIGS, ids=["llama", "gpt2"])
def test_no_float64_is_made_off_the_cpu(config):
    """The device mps, which completion offers, has no float64. The tables of angles once needed it there."""
    model = meta_model(config)
    token_ids = torch.zeros(2, 8, dtype=torch.long, device="meta")
    with NoFloat64():
        assert model(token_ids).shape == (2, 8, 50)
        assert model(token_ids, positions=token_ids).shape == (2, 8, 50)
        session = NativeSession(model)
        assert session.prefill([[1, 2, 3], [4, 5]]).shape == (2, 50)
        assert session.decode([[1, 2], [3, 4]]).shape == (2, 2, 50)


def test_positions_off_the_cpu_give_the_same_tables():
    model = Transformer(CONFIGS[0])
    positions = torch.tensor([[0, 1, 0, 1, 2], [0, 1, 2, 3, 31]])
    expected = rope_tables(CONFIGS[0], positions[:, None], torch.float32)
    table = rope_tables(CONFIGS[0], torch.arange(32), torch.float32)
    for whole, theirs, ours in zip(table, expected, model._rope(positions, positions, torch.float32), strict=True):
        assert torch.equal(ours, theirs)
        assert torch.equal(whole[positions][:, None], theirs)


@pytest.mark.parametrize("folder", ["model", "session", "inside", "evaluation", "training"])
def test_whatever_becomes_float64_comes_to_the_cpu_first(folder):
    """A tensor that depends on a model's output cannot be tried without the device, so the source is read."""
    package = Path(tinystory.__file__).parent / folder
    lines = [line for path in package.rglob("*.py") for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line for line in lines if ".double()" in line and ".cpu().double()" not in line] == []
