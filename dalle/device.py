"""Devices: selection, free memory, recognition of out-of-memory errors, and copies that do not block the host."""

from __future__ import annotations

import errno
import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

_CGROUP, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# Out-of-memory messages of torch's allocators, of C++, and of libraries that read files
_OUT_OF_MEMORY = re.compile(
    r"out of memory|alloc_cpu\.cpp|bad_alloc|(cannot|can't|could not|unable to|failed to) allocate|(re|m)alloc of size"
    r"|_ALLOC_FAILED",
    re.IGNORECASE,
)
_BYTES = re.compile(r"(?:allocate|size)\s+([\d.]+)\s*(bytes|[KMGT]i?B)?", re.IGNORECASE)
_UNITS = {"b": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def to_device(device: torch.device, tensor: Tensor) -> Tensor:
    """Copy a tensor to a device; to a GPU through pinned memory, without blocking.

    A copy from pageable memory would first wait for all kernels queued on the GPU.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class AsyncRead:
    """A non-blocking device-to-host copy. `read()` waits for this copy only, not for kernels queued after it."""

    def __init__(self, numbers: Tensor) -> None:
        """Start copying a tensor [N], which must not be modified afterward."""
        self._copied: torch.cuda.Event | None = None
        self._numbers = numbers.detach()
        if numbers.device.type == "cuda":
            self._numbers = self._numbers.to("cpu", non_blocking=True)  # torch allocates pinned memory for it
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(numbers.device))

    def read(self) -> list[float]:
        """Wait for the copy and return the values."""
        if self._copied is not None:
            self._copied.synchronize()
        found: list[float] = self._numbers.tolist()
        return found


def pick_device(device: str | torch.device) -> torch.device:
    """Return the device of this name; "auto" is the accelerator if there is one, else the CPU.

    Raises:
        ValueError: there is no such device on this machine.
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
    """Return the bytes that can still be allocated on a device.

    On the CPU that is the machine's available memory, or less where a limit applies: of the process's control groups
    (containers, batch systems), or of its address space and data segment (`ulimit -v`, `ulimit -d`).
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]  # free, and total
    try:
        with open("/proc/meminfo") as lines:
            free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # not Linux: assume half of the machine's memory
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return max(0, min([free, *_cgroup_headroom(), *_rlimit_headroom()]))


def _cgroup_headroom() -> list[int]:
    """Bytes left under the limit of each control group of the process; the inactive page cache counts as free."""
    headroom = []
    for folder, names in _memory_cgroups():
        try:
            limit, used = ((folder / name).read_text().strip() for name in names)
        except OSError:  # no limit, or no permission to read it
            continue
        stat = folder / "memory.stat"
        lines = stat.read_text().splitlines() if stat.is_file() else []
        reclaimable = next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
        if limit.isdecimal():  # without a limit it is "max"
            headroom.append(int(limit) - int(used) + reclaimable)
    return headroom


def _memory_cgroups() -> Iterator[tuple[Path, tuple[str, str]]]:
    """Folders of the process's memory control groups and their ancestors, with their files of limit and usage."""
    # Version 2 and version 1 of the interface. In a container the first two are its own groups; on a host the path of
    # the group is in /proc/self/cgroup, and each ancestor can have a limit, too
    new, old = ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")
    yield _CGROUP, new
    yield _CGROUP / "memory", old
    try:
        own = _OWN_GROUPS.read_text().splitlines()
    except OSError:
        return
    for line in own:
        _, controllers, path = line.split(":", 2)
        root, names = (_CGROUP, new) if not controllers else (_CGROUP / "memory", old)  # version 2 lists none
        if not controllers or "memory" in controllers.split(","):
            parts = Path(path.strip("/")).parts
            for depth in range(len(parts), 0, -1):
                yield root.joinpath(*parts[:depth]), names


def _rlimit_headroom() -> list[int]:
    """Bytes left under the resource limits of the process."""
    pages = [int(number) for number in Path("/proc/self/statm").read_text().split()]
    used = {resource.RLIMIT_AS: pages[0], resource.RLIMIT_DATA: pages[5]}  # in pages: address space, data and stack
    limits = {kind: resource.getrlimit(kind)[0] for kind in used}
    size = os.sysconf("SC_PAGE_SIZE")
    return [limit - used[kind] * size for kind, limit in limits.items() if limit != resource.RLIM_INFINITY]


def out_of_memory(error: BaseException) -> str | None:
    """Describe an error that is, or was caused by, a lack of memory, in one line; None for any other error."""
    for cause in _causes(error):
        if _is_out_of_memory(cause):
            return f"out of memory{_requested(str(cause))}"
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, its cause, the cause of that, and so on."""
    while error is not None:
        yield error
        # What a traceback would show
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    # torch and the libraries that read files raise many classes; a ValueError is about user input that may quote these
    return not isinstance(error, ValueError) and _OUT_OF_MEMORY.search(str(error)) is not None


def _requested(message: str) -> str:
    """The amount that was requested, if the message contains it."""
    found = _BYTES.search(message)
    if found is None:
        return ""
    count = float(found[1].rstrip(".")) * _UNITS[(found[2] or "b")[0].lower()]
    return f" (asked for {count / 1e9:.3g} GB more)" if count >= 1e7 else ""  # small amounts say nothing of the model


def device_of(module: nn.Module) -> torch.device:
    """Return the device of a module's parameters."""
    return next(module.parameters()).device
