"""Limits how long OpenMP threads spin. Must run before torch is imported, since OpenMP reads its settings once."""

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
