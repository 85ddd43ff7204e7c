"""Graceful shutdown of long commands on signals: Ctrl-C, and those that job schedulers send."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM, where Ctrl-C would raise KeyboardInterrupt."""


def exit_code(stop: KeyboardInterrupt) -> int:
    """The exit code of a command that Ctrl-C or SIGTERM ended: 128 plus the number of the signal, as in shells."""
    return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """SIGTERM raises `Terminated` inside, so that a command ends as at Ctrl-C and keeps what it has finished."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not break off the writing of what is kept
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def quiet_exit(argv: Sequence[str] | None) -> Iterator[None]:
    """Ctrl-C behind the block, while Python ends, ends the process at once: what runs then would print a traceback.

    Args:
        argv: what a main function is given; only None, the arguments of the process, means that it ends with it.
    """
    try:
        yield
    finally:
        if argv is None:
            signal.signal(signal.SIGINT, _end)


def _end(number: int, _frame: FrameType | None) -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, RuntimeError):  # closed, or being flushed at this moment
            stream.flush()
    os._exit(128 + number)


class SignalHandler:
    """Turns SIGINT, SIGTERM and SIGUSR1 into a flag that the loop checks between steps; a second Ctrl-C aborts at once.

    The first one is acknowledged by a line on stderr, as a step may take minutes.

    A second SIGTERM or SIGUSR1 does not: a scheduler signals all processes of a job, and a launcher forwards the
    signal that it got, so workers receive it twice.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    @property
    def code(self) -> int:
        """The exit code of an interrupted run: 128 plus the number of the signal, as in shells.

        If only another process of the run received a signal, it counts as SIGTERM.
        """
        return 128 + (self.signal or signal.SIGTERM)

    def __enter__(self) -> SignalHandler:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        self.before = {int(number): signal.signal(number, self._note) for number in numbers}
        self._process = os.getpid()  # its workers inherit the handlers
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        # Of several processes one says it
        if self.signal is None and os.getpid() == self._process and os.environ.get("RANK", "0") == "0":
            again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
            with suppress(OSError):  # the terminal may have gone
                # Not by `print`, whose buffer the interrupted code may be writing to. A progress bar's line ends first
                os.write(2, f"\n{signal.Signals(number).name}: stopping after this step{again}\n".encode())
        self.signal = number
        if number == signal.SIGINT:
            signal.signal(number, self.before[number])
