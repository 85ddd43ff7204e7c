"""Waiting less: OpenMP threads that spin, a compiler. Set in the process's environment, before torch is imported."""

from __future__ import annotations

import os
import sys

# By default GNU OpenMP spins about 300,000 times, which takes milliseconds and keeps other processes off the core. If
# all cores are busy, the thread that the others are waiting for may be the one that gets no core. This many spins take
# microseconds, enough to bridge the gap between two operators on a quiet machine (measured in docs/log.md).
_SPINS = 1000
_SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def limit_openmp_spinning() -> None:
    """Let waiting threads sleep after a short spin, unless the environment sets their behavior.

    Does nothing if torch has been imported already.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in _SETTINGS):
        os.environ["GOMP_SPINCOUNT"] = str(_SPINS)


def compile_in_background() -> None:
    """Do not wait for native kernels where they are not compiled yet: for commands that are short without them.

    A first image takes 3 seconds without them, and compiling takes 15.
    """
    os.environ.setdefault("DALLE_COMPILE_IN_BACKGROUND", "1")
