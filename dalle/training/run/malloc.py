"""What the C library does with memory that is freed: by default it gives large pieces back to the system each time."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, in glibc's malloc.h
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Keep freed memory for what comes next; returns whether the C library can be told so (glibc's can).

    Every step frees and takes the same gradients and activations. Given back, each page of them is cleared and
    mapped anew by the system (docs/log.md). The process then holds what its highest moment took until it ends.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or another system
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST) and mallopt(_TRIM_THRESHOLD, _LARGEST))
