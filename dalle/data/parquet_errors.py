"""Errors of reading a Parquet file as one line that names it. Knows nothing of what is in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow

from dalle.files import lfs_pointer


@contextmanager
def parquet_errors(file: Path) -> Iterator[None]:
    """Turn pyarrow's errors about a file, inside the block, into one line.

    Raises:
        ValueError: it is no Parquet file, only a part of one, or damaged.
    """
    try:
        yield
    except MemoryError:  # pyarrow's out-of-memory error is an ArrowException too, but no sign of damage
        raise
    # OSError: what damage inside of a file gives, as opposed to its footer
    except (OSError, pyarrow.ArrowException) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        what = lfs_pointer(file) or f"not a complete Parquet file ({reason}): copy it again or remove it"
        raise ValueError(f"{file} is {what}") from error
