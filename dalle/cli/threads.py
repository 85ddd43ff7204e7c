"""How threads of OpenMP wait for work: settled before torch is imported, which reads it once."""

from __future__ import annotations

import os
import sys

# GNU's OpenMP spins some 300,000 times, milliseconds, in which no other process gets that core; where all cores are
# busy, the thread that is waited for is one of those that get none. This many are microseconds: enough from one
# operator to the next on a quiet machine (docs/log.md).
_SPINS = 1000
_SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def limit_openmp_spinning() -> None:
    """Let threads spin only for a moment before they sleep, unless the environment says how they wait.

    Where torch has been imported already, it is too late, and nothing is done.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in _SETTINGS):
        os.environ["GOMP_SPINCOUNT"] = str(_SPINS)
