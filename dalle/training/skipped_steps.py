"""What became of each step, told a little late: the device decides whether to take it, and the host does not wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from dalle.device import AsyncRead
from dalle.training.run.log import RunLog


class SkippedStepMonitor:
    """Which steps were taken. Told one step late the device still has the next one to do meanwhile."""

    def __init__(self, log: RunLog, max_in_a_row: int, folder: Path) -> None:
        """Report to a log; `most` skipped steps in a row end the run, whose checkpoints are in `folder`."""
        self.log, self.max_in_a_row, self.folder = log, max_in_a_row, folder
        self.in_a_row = 0
        self._pending: deque[tuple[int, list[str], AsyncRead]] = deque()

    def add(self, step: int, norms: Mapping[str, Tensor]) -> None:
        """Ask for the outcome of step number `step`: of each phase that ran the norm of its gradient."""
        self._pending.append((step, list(norms), AsyncRead(torch.stack([torch.isfinite(n) for n in norms.values()]))))

    def flush(self, step: int) -> bool:
        """Tell what became of the steps up to this one, and wait for that if need be; returns whether it was taken.

        Raises:
            ValueError: too many in a row were not.
        """
        while self._pending and self._pending[0][0] <= step:
            number, phases, copy = self._pending.popleft()
            skipped = [phase for phase, finite in zip(phases, copy.read(), strict=True) if not finite]
            self.in_a_row = self.in_a_row + 1 if skipped else 0
            if not skipped:
                continue
            self.log.skipped(number, skipped[0], self.in_a_row)
            if self.in_a_row >= self.max_in_a_row:
                raise ValueError(
                    f"{self.in_a_row} steps in a row were not finite: try a lower optim.lr, a longer optim.warmup or "
                    f"run.precision=fp32; the checkpoints in {self.folder} are from before"
                )
        return not self.in_a_row


class StopSignal:
    """Whether a run is to end early. Of several processes each hears of the others' signals one step late."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self._pending: AsyncRead | None = None

    def __call__(self, stop: bool) -> bool:
        """Once a step, in all processes: whether this one, or some other one before, was told to end."""
        if self.accelerator.num_processes == 1:
            return stop
        before = self._pending
        flag = torch.full((1,), float(stop), device=self.accelerator.device)
        self._pending = AsyncRead(self.accelerator.reduce(flag, reduction="sum"))
        return before is not None and before.read()[0] > 0
