"""Check that a device is tried before use, and that it is refused with the same message everywhere."""

import pytest
import torch

from tinystory.checkpoint import load_model, read_header
from tinystory.checkpoint.shipped import SHIPPED_MODELS
from tinystory.errors import UsageError
from tinystory.model.device import usable_device
from tinystory.session.loading import load
from tinystory.training.distributed import joined


def test_a_device_that_works_is_returned():
    assert usable_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:99", "cpu:x", "meta"])
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
