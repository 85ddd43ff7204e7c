"""Counting records that cannot be used, so that none is lost silently."""

from __future__ import annotations

import logging
from collections.abc import Iterable

log = logging.getLogger(__name__)

_SHOWN = 3


class BadRecordCounter:
    """Names every skipped record in the log, once however often it is met; raises when there are more than `limit`."""

    def __init__(self, limit: int):
        self.limit = limit
        self.names: dict[str, None] = {}  # in the order in which they were met

    def add(self, names: Iterable[str]) -> None:
        """Count records that were met just now."""
        for name in names:
            if name not in self.names:
                log.warning("skipped %s", name)
                self.names[name] = None
        self._check()

    def merge(self, names: Iterable[str]) -> None:
        """Count records that were named in the log before: by another process, or before an interruption."""
        self.names |= dict.fromkeys(names)
        self._check()

    def report(self) -> str:
        return f"broken records skipped: {len(self.names)} ({self._first()})"

    def _check(self) -> None:
        if len(self.names) > self.limit:
            raise ValueError(
                f"too many broken records: {len(self.names)} ({self._first()}), and data.max_bad is {self.limit}; "
                "mend them or raise data.max_bad"
            )

    def _first(self) -> str:
        return "; ".join(list(self.names)[:_SHOWN]) + ("; ..." if len(self.names) > _SHOWN else "")
