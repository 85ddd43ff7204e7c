"""Tensors to a device and numbers back from it, so that the host does not wait for what the device has still to do."""

from __future__ import annotations

import torch
from torch import Tensor


def onto(device: torch.device, tensor: Tensor) -> Tensor:
    """A tensor on a device.

    To a GPU it goes through pinned memory: from other memory a copy waits for all that the GPU has to do.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class Coming:
    """Numbers on their way to the host. `read` waits for what makes them, not for what the device was asked later."""

    def __init__(self, numbers: Tensor) -> None:
        """Ask for numbers [N]; nobody may change them afterwards."""
        self._made: torch.cuda.Event | None = None
        self._numbers = numbers.detach()
        if numbers.device.type == "cuda":
            self._numbers = self._numbers.to("cpu", non_blocking=True)  # which torch pins
            self._made = torch.cuda.Event()
            self._made.record(torch.cuda.current_stream(numbers.device))

    def read(self) -> list[float]:
        """The numbers, once they are there."""
        if self._made is not None:
            self._made.synchronize()
        found: list[float] = self._numbers.tolist()
        return found
