"""Reports skipped (non-finite) optimizer steps one step late, so that the host never synchronizes with the GPU."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from dalle.device import AsyncRead
from dalle.training.checkpoint.folders import folders
from dalle.training.run.log import RunLog


class SkippedStepMonitor:
    """Tracks which steps were skipped.

    Reading the result of step N while step N + 1 is queued keeps the GPU busy.
    """

    def __init__(self, log: RunLog, max_in_a_row: int, folder: Path) -> None:
        """Create a monitor.

        Args:
            log: where skipped steps are reported.
            max_in_a_row: number of consecutive skipped steps that ends the run.
            folder: run folder, for the error message.
        """
        self.log, self.max_in_a_row, self.folder = log, max_in_a_row, folder
        self.in_a_row = 0
        self._pending: deque[tuple[int, list[str], AsyncRead]] = deque()

    def add(self, step: int, norms: Mapping[str, Tensor]) -> None:
        """Start reading the outcome of a step.

        Args:
            step: number of the step, counting from 1.
            norms: gradient norm of each phase that ran, on the device.
        """
        # One bool per phase, compared on the device: a single small copy for all
        self._pending.append((step, list(norms), AsyncRead(torch.stack([torch.isfinite(n) for n in norms.values()]))))

    def flush(self, step: int) -> bool:
        """Report the steps up to and including `step`, waiting for the device if necessary.

        Returns:
            Whether the last of them was applied.

        Raises:
            ValueError: too many consecutive steps were skipped.
        """
        while self._pending and self._pending[0][0] <= step:
            number, phases, copy = self._pending.popleft()
            skipped = [phase for phase, finite in zip(phases, copy.read(), strict=True) if not finite]
            # Single skips are normal (a loss scale that grew too far); a row of them is divergence
            self.in_a_row = self.in_a_row + 1 if skipped else 0
            if not skipped:
                continue
            self.log.skipped(number, skipped[0], self.in_a_row)
            if self.in_a_row >= self.max_in_a_row:
                older = f"the checkpoints in {self.folder} are older and can be resumed"
                raise ValueError(
                    f"{self.in_a_row} steps in a row were not finite: try a lower optim.lr, a longer optim.warmup or "
                    f"run.precision=fp32; {older if folders(self.folder) else 'there is no checkpoint: start again'}"
                )
        return not self.in_a_row


class StopSignal:
    """Decides in all processes alike whether a run ends early; a signal to one of them takes effect a step later."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self._pending: AsyncRead | None = None

    def __call__(self, stop: bool) -> bool:
        """All-reduce the stop flag; every process must call it once per step.

        Args:
            stop: whether this process has received a signal.

        Returns:
            Whether any process had received one by the previous step (with a single process: by this step).
        """
        if self.accelerator.num_processes == 1:
            return stop
        # The answer of the previous step is here by now; that of this step would have to be waited for
        before = self._pending
        flag = torch.full((1,), float(stop), device=self.accelerator.device)
        self._pending = AsyncRead(self.accelerator.reduce(flag, reduction="sum"))
        return before is not None and before.read()[0] > 0
