"""Signals that end a long command early, but in order: Ctrl-C, and what schedulers send."""

from __future__ import annotations

import signal
from types import FrameType


class SignalHandler:
    """Turns SIGINT, SIGTERM and SIGUSR1 into a flag, which the loop reads between steps; a second Ctrl-C ends at once.

    A scheduler sends the others to all processes of a job, and a launcher passes on what it got: twice is once.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    @property
    def code(self) -> int:
        """The exit code of a run that was ended: 128 and the signal's number, as shells say it.

        Where another process of the run got it, it is taken for SIGTERM.
        """
        return 128 + (self.signal or signal.SIGTERM)

    def __enter__(self) -> SignalHandler:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        self.before = {int(number): signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.signal = number
        if number == signal.SIGINT:
            signal.signal(number, self.before[number])
