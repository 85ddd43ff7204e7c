"""Memory that the C library keeps of what is freed: batches of other sizes leave holes in it that nothing fits."""

from __future__ import annotations

import ctypes
from collections.abc import Callable


def trimmer() -> Callable[[], object]:
    """A function that gives free memory back to the system; it does nothing where the C library is not glibc."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return lambda: None
    return lambda: trim(ctypes.c_size_t(0))
