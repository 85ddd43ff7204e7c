"""Jobs that wait to be drawn, image by image, fairly among clients. No threads, no clocks, no torch.

A client that sends a hundred images waits behind its own, not the others behind it: slots of a batch go round the
clients, one image each.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dalle.pipelines.init_image import InitImage
    from dalle.pipelines.request import Request

Tell = Callable[[Any], object]


@dataclass(eq=False)
class Job:
    """The candidates of one request of a client.

    Attributes:
        request: what is drawn; its seeds are the candidates.
        client: whose it is, for fairness.
        lead: image tokens that its candidates keep at the start: batches are of one lead.
        tell: takes what happens to it (dalle/apps/server/events.py); called in the worker's thread.
        previews: how many of the first image tokens must be drawn for each preview, in order.
        waiting: candidates that are not being drawn.
        cancelled: nobody wants it any more.
        resumed: candidate -> what has been drawn of it before its batch was broken off.
    """

    request: Request
    client: str
    lead: int
    tell: Tell
    previews: tuple[int, ...] = ()
    waiting: deque[int] = field(default_factory=deque)
    cancelled: bool = False
    resumed: dict[int, InitImage] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.waiting.extend(range(len(self.request.seeds)))


@dataclass(frozen=True)
class Unit:
    """One candidate of a job."""

    job: Job
    index: int


class Full(Exception):
    """There is no room for a job; `by_client` says whose limit it is."""

    def __init__(self, waiting: int, limit: int, by_client: bool) -> None:
        super().__init__(waiting, limit)
        self.waiting, self.limit, self.by_client = waiting, limit, by_client


class FairQueue:
    """Bounded, first come first served within a client, round robin among them."""

    def __init__(self, limit: int, per_client: int) -> None:
        """Make an empty queue.

        Args:
            limit: images that may wait.
            per_client: images of one client that may wait or be drawn.
        """
        self.limit, self.per_client = limit, per_client
        self.clients: dict[str, deque[Job]] = {}  # in the order in which they are served
        self.held: Counter[str] = Counter()  # client -> images that wait or are drawn

    def __len__(self) -> int:
        return sum(len(job.waiting) for jobs in self.clients.values() for job in jobs)

    def add(self, job: Job) -> None:
        """Let a job wait.

        Raises:
            Full: there is no room for all of its images.
        """
        count = len(job.waiting)
        if len(self) + count > self.limit:
            raise Full(len(self), self.limit, False)
        if self.held[job.client] + count > self.per_client:
            raise Full(self.held[job.client], self.per_client, True)
        self.held[job.client] += count
        self.clients.setdefault(job.client, deque()).append(job)

    def take(self, size: int) -> list[Unit]:
        """The next batch: at most `size` images, all of the lead of the one that has waited longest in its turn."""
        units: list[Unit] = []
        lead: int | None = None
        turn = deque(self.clients)
        while turn and len(units) < size:
            client = turn.popleft()
            jobs = self.clients[client]
            job = next((one for one in jobs if one.waiting and lead in (None, one.lead)), None)
            if job is None:
                continue
            lead = job.lead
            units.append(Unit(job, job.waiting.popleft()))
            if not job.waiting:
                jobs.remove(job)
            # Who has had a slot goes to the end of the line, for the next batch too
            del self.clients[client]
            if jobs:
                self.clients[client] = jobs
                turn.append(client)
        return units

    def release(self, unit: Unit) -> None:
        """An image that was taken is finished, or not wanted any more."""
        self._let_go(unit.job.client, 1)

    def drop(self, job: Job) -> None:
        """Let the images of a job that still wait be forgotten."""
        self._let_go(job.client, len(job.waiting))
        job.waiting.clear()
        jobs = self.clients.get(job.client, deque())
        if job in jobs:
            jobs.remove(job)
            if not jobs:
                del self.clients[job.client]

    def jobs(self) -> list[Job]:
        """All that have images waiting."""
        return [job for jobs in self.clients.values() for job in jobs]

    def _let_go(self, client: str, count: int) -> None:
        self.held[client] -= count
        if self.held[client] <= 0:
            del self.held[client]
