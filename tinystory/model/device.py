"""The device of a model, checked before anything is loaded onto it. It imports torch only when it is called."""

import warnings
from typing import TYPE_CHECKING

from tinystory.errors import UsageError

if TYPE_CHECKING:
    import torch

__all__ = ["usable_device"]


def usable_device(name: str) -> "torch.device":
    """Return the torch device of a name, after computing something on it.

    Args:
        name: the name of the device as torch writes it, like "cpu", "cuda" or "cuda:1".

    Raises:
        UsageError: torch does not know the device, or this computer does not have it.
    """
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of devices that it had once
            device = torch.device(name)
            torch.zeros(1, device=device).item()
        if device.type == "cpu" and device.index:  # torch takes any number, but there is one CPU
            raise ValueError(name)
        device = torch.device("cpu") if device.type == "cpu" else device
    except Exception as error:  # torch raises several kinds of errors for a device that it does not know or have
        raise UsageError(f"device {name!r} is not available here; use cpu, which always works") from error
    return device
