"""Devices: choosing one, its free memory, and copies to and from it that do not stall the host."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn

_CGROUP = Path("/sys/fs/cgroup")


def to_device(device: torch.device, tensor: Tensor) -> Tensor:
    """Copy a tensor to a device; to a GPU through pinned memory and without blocking.

    From pageable memory a copy would first wait for all kernels that the GPU has queued.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class AsyncRead:
    """A non-blocking copy of numbers to the host. `read` waits for this copy, not for kernels queued after it."""

    def __init__(self, numbers: Tensor) -> None:
        """Start copying numbers [N], which nobody may change afterwards."""
        self._copied: torch.cuda.Event | None = None
        self._numbers = numbers.detach()
        if numbers.device.type == "cuda":
            self._numbers = self._numbers.to("cpu", non_blocking=True)  # which torch pins
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(numbers.device))

    def read(self) -> list[float]:
        """The numbers, once they have arrived."""
        if self._copied is not None:
            self._copied.synchronize()
        found: list[float] = self._numbers.tolist()
        return found


def pick_device(device: str | torch.device) -> torch.device:
    """The device of this name; "auto" is the accelerator if there is one, else the CPU.

    Raises:
        ValueError: there is no such device here.
    """
    found = torch.accelerator.current_accelerator(check_available=True)
    if device == "auto":
        return found or torch.device("cpu")
    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise ValueError(f"there is no device {str(device)!r}: give auto, cpu, cuda or mps") from None
    if wanted.type != "cpu" and (found is None or found.type != wanted.type):
        raise ValueError(f"device {wanted} is not available here: this machine has {found or 'only the cpu'}")
    return wanted


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on a device: of the machine's memory, or what a control group leaves of it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as lines:
            free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # not Linux: half of the machine's memory
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    try:
        limit, used = ((_CGROUP / f"memory.{name}").read_text().strip() for name in ("max", "current"))
    except OSError:  # no control group, or an older kind
        return free
    return free if limit == "max" else min(free, int(limit) - int(used))


def device_of(module: nn.Module) -> torch.device:
    """Where a module's parameters are."""
    return next(module.parameters()).device
