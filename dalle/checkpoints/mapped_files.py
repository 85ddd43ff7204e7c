"""Memory-mapped files as tensors, whose pages are released again after use."""

from __future__ import annotations

import mmap
import sys
from ctypes import CDLL, c_int, c_size_t, c_void_p
from pathlib import Path

import torch
from torch import Tensor


def mmap_bytes(file: Path) -> Tensor:
    """Memory-map a file as uint8, copy-on-write."""
    size = file.stat().st_size
    storage = torch.UntypedStorage.from_file(str(file), shared=False, nbytes=size)
    storage.mapped = True  # type: ignore[union-attr]  # for `drop_pages`
    return torch.empty(0, dtype=torch.uint8).set_(storage)  # type: ignore[arg-type]


def drop_pages(tensor: Tensor) -> None:
    """Release the resident pages of a view of a mapped file (they are read again on access); else do nothing."""
    # Only Linux's MADV_DONTNEED gives the pages back and reads them again
    if sys.platform != "linux" or not getattr(tensor.untyped_storage(), "mapped", False) or not tensor.numel():
        return
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    # The extent in memory by strides, which is right for transposed views too; then only whole pages inside it.
    start, end = tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.itemsize
    start, end = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if end > start:
        advise = CDLL(None).madvise
        advise.argtypes = [c_void_p, c_size_t, c_int]  # addresses have 64 bits
        advise(start, end - start, mmap.MADV_DONTNEED)
