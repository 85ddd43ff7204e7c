"""Worker processes that load data: their number, the signals that they obey, and what it means that one has died."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset


def describe_lost_worker(error: RuntimeError) -> str | None:
    """An explanation of torch's error about a worker process that has died; None for any other error.

    Torch raises it from a signal handler, so it may surface at any line of the program.
    """
    if not str(error).startswith("DataLoader worker"):
        return None
    reason = str(error).partition("\n")[0].rstrip(".")
    return (
        f"a data loader worker has died ({reason}): if memory ran out, lower run.workers or enlarge /dev/shm; "
        "existing checkpoints are intact, and resume=true goes on from them"
    )


def data_loader(dataset: Dataset, seed: int, workers: int, **options: Any) -> DataLoader:
    """Create a `DataLoader` with `workers` processes; 0 loads in this one.

    Raises:
        ValueError: more workers than 4 per core (and than 16).
    """
    # Each is a copy of this process: hundreds take all of a machine's memory, from other programs too
    most = max(16, 4 * (os.cpu_count() or 1))
    if workers > most:
        raise ValueError(f"run.workers is {workers}; on {os.cpu_count()} cores it must be at most {most}")
    return DataLoader(
        dataset,
        num_workers=workers,
        generator=torch.Generator().manual_seed(seed),  # or it would advance the global generator
        multiprocessing_context="fork" if workers else None,  # shares the index of the data set; spawn would copy it
        prefetch_factor=4 if workers else None,
        worker_init_fn=_end_by_parent_only,
        **options,
    )


def _end_by_parent_only(_: int) -> None:
    """In a worker: obey SIGTERM and SIGUSR1 only if the parent process sent them.

    Schedulers and launchers signal all processes of a run. The main one then finishes its step and saves a checkpoint,
    for which it needs its workers.
    """
    if not hasattr(signal, "sigwaitinfo"):  # macOS
        return
    stop_signals = {signal.SIGTERM, signal.SIGUSR1}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals)
    parent = os.getppid()

    # A blocked signal stays pending until `sigwaitinfo` takes it, along with the process that sent it.
    def wait() -> None:
        while signal.sigwaitinfo(stop_signals).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
