"""Tensors that are computed once and kept in the folder of an evaluation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from pathlib import Path

from torch import Tensor

from dalle.checkpoints.quantization import Storage
from dalle.checkpoints.tensors import read_tensors, write_tensors
from dalle.files import atomic_file

log = logging.getLogger(__name__)


def cached_tensors(
    file: Path, compute: Callable[[], dict[str, Tensor]], names: Collection[str], storage: Storage | None = None
) -> dict[str, Tensor]:
    """Read tensors from a file, or compute and write them if it is not there, or damaged, which is a warning.

    Args:
        file: the cache.
        compute: returns the tensors.
        names: tensors that a whole file has at least.
        storage: dtype in which floating-point tensors are written; None keeps theirs.

    Raises:
        OSError: the file cannot be written.
    """
    if file.is_file():
        try:
            found = read_tensors(file)
        except ValueError:  # truncated, by a full disk or a broken copy
            found = {}
        if set(names) <= set(found):
            return found
        log.warning("%s is damaged: computing it again", file)
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(file) as part:
        write_tensors(compute(), part, storage)
    return read_tensors(file)
