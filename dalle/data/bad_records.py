"""Counts unusable records, so that none is dropped silently and a broken data set stops the run."""

from __future__ import annotations

import logging
from collections.abc import Iterable

log = logging.getLogger(__name__)

_MAX_SHOWN = 3  # records named in a message


class BadRecordCounter:
    """Logs each skipped record once, and raises once more than `limit` distinct records have been skipped.

    Args:
        limit: the largest number of broken records to tolerate (`data.max_bad`).

    Attributes:
        names: names of the skipped records, each with its reason.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.names: dict[str, None] = {}  # a dict is an ordered set: records in the order they were found

    def add(self, names: Iterable[str]) -> None:
        """Log and count newly skipped records.

        Raises:
            ValueError: the limit is exceeded.
        """
        for name in names:
            if name not in self.names:
                log.warning("skipped %s", name)
                self.names[name] = None
        self._check()

    def merge(self, names: Iterable[str]) -> None:
        """Count records that were already logged: by another process, or before an interruption.

        Raises:
            ValueError: the limit is exceeded.
        """
        self.names |= dict.fromkeys(names)
        self._check()

    def report(self) -> str:
        """One line for the log: the number of skipped records and the first few names."""
        return f"broken records skipped: {len(self.names)} ({self._first()})"

    def _check(self) -> None:
        if len(self.names) > self.limit:
            raise ValueError(
                f"too many broken records: {len(self.names)} ({self._first()}), and data.max_bad is {self.limit}; "
                "repair them or raise data.max_bad"
            )

    def _first(self) -> str:
        return "; ".join(list(self.names)[:_MAX_SHOWN]) + ("; ..." if len(self.names) > _MAX_SHOWN else "")
