"""What this machine is, and how fast it reads memory and multiplies matrices; used by the benchmarks."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable

import torch

READ = 400_000_000  # bytes that no cache holds


def wait(device: torch.device) -> None:
    """Until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """The time of some work."""
    wait(device)
    start = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - start


class Memory:
    """How fast the machine reads memory: by the fastest of several ways to read, chosen once."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        flat = torch.ones(READ * (8 if device.type == "cuda" else 1) // dtype.itemsize, dtype=dtype, device=device)
        square = flat[: len(flat) // 4096 * 4096].view(-1, 4096)
        vector, column = square.new_ones(4096), square.new_ones(len(square))
        self.device, self.bytes = device, flat.nbytes
        ways: list[Callable[[], object]] = [flat.sum, flat.max, lambda: square @ vector, lambda: column @ square]
        times = {way: [seconds(way, device) for _ in range(7)] for way in ways}
        self.way = min(ways, key=lambda way: median(times[way]))

    def seconds(self) -> float:
        """Read once."""
        return seconds(self.way, self.device)

    def rate(self, rounds: int = 7) -> float:
        """Bytes a second, the median of some rounds."""
        return self.bytes / median([self.seconds() for _ in range(rounds)])


def multiplication(device: torch.device, dtype: torch.dtype, rounds: int = 7) -> float:
    """Floating-point operations a second of a large product: the best of some."""
    size = 8192 if device.type == "cuda" else 2048
    one, other = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    seconds(lambda: one @ other, device)
    return 2 * size**3 / min(seconds(lambda: one @ other, device) for _ in range(rounds))


def describe(device: torch.device) -> dict[str, str | int]:
    """What the figures depend on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu()
    return {
        "machine": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            found = dict(line.split(":", 1) for line in lines if line.count(":") == 1)
    except OSError:
        return platform.processor() or platform.machine()
    known = {key.strip(): value.strip() for key, value in found.items()}
    flags = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in known.get("flags", "").split()]
    return f"{known.get('model name', platform.machine())} ({', '.join(flags)})"


def median(values: list[float]) -> float:
    """The middle one."""
    return statistics.median(values)
