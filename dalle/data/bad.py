"""Counting records that cannot be used, so that none is lost silently."""

from __future__ import annotations

import logging
from collections.abc import Sequence

log = logging.getLogger(__name__)


class BadCounter:
    """Names every skipped record in the log, and raises once there are more than `limit`."""

    def __init__(self, limit: int):
        self.limit, self.count = limit, 0
        self.first: list[str] = []

    def add(self, names: Sequence[str]) -> None:
        for name in names:
            log.warning("skipped %s", name)
        self.count += len(names)
        self.first = (self.first + list(names))[:3]
        if self.count > self.limit:
            raise ValueError(
                f"{self.count} broken records, more than data.max_bad={self.limit} allows; the first: "
                f"{'; '.join(self.first)}: mend them or raise data.max_bad"
            )

    def report(self) -> str:
        return f"{self.count} broken records were skipped"
