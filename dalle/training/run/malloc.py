"""Tells glibc's malloc to keep freed blocks, so that a step does not page-fault its activations in again."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Make malloc keep freed memory for reuse; returns whether the C library supports that (glibc does).

    Every step frees and reallocates the same gradients and activations. By default glibc returns large blocks to the
    kernel, which then has to zero and map every page again (measured in docs/log.md). The price: the process keeps its
    peak memory until it ends.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or another system
        return False
    # Never use mmap for large blocks, and never shrink the heap
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST) and mallopt(_TRIM_THRESHOLD, _LARGEST))
