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

    def __init__(self, log: RunLog, most: int, folder: Path) -> None:
        """Report to a log; `most` skipped steps in a row end the run, whose checkpoints are in `folder`."""
        self.log, self.most, self.folder = log, most, folder
        self.in_a_row = 0
        self._open: deque[tuple[int, list[str], AsyncRead]] = deque()

    def add(self, step: int, norms: Mapping[str, Tensor]) -> None:
        """Ask for the outcome of step number `step`: of each phase that ran the norm of its gradient."""
        self._open.append((step, list(norms), AsyncRead(torch.stack([torch.isfinite(n) for n in norms.values()]))))

    def settle(self, step: int) -> bool:
        """Tell what became of the steps up to this one, and wait for that if need be; returns whether it was taken.

        Raises:
            ValueError: too many in a row were not.
        """
        while self._open and self._open[0][0] <= step:
            number, phases, coming = self._open.popleft()
            skipped = [phase for phase, finite in zip(phases, coming.read(), strict=True) if not finite]
            self.in_a_row = self.in_a_row + 1 if skipped else 0
            if not skipped:
                continue
            self.log.skipped(number, skipped[0], self.in_a_row)
            if self.in_a_row >= self.most:
                raise ValueError(
                    f"{self.in_a_row} steps in a row were not finite: try a lower optim.lr, a longer optim.warmup or "
                    f"run.precision=fp32; the checkpoints in {self.folder} are from before"
                )
        return not self.in_a_row


class StopSignal:
    """Whether a run is to end early. Of several processes each hears of the others' signals one step late."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self._coming: AsyncRead | None = None

    def __call__(self, told: bool) -> bool:
        """Once a step, in all processes: whether this one, or some other one before, was told to end."""
        if self.accelerator.num_processes == 1:
            return told
        before = self._coming
        flag = torch.full((1,), float(told), device=self.accelerator.device)
        self._coming = AsyncRead(self.accelerator.reduce(flag, reduction="sum"))
        return before is not None and before.read()[0] > 0
