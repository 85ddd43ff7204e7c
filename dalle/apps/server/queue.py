"""The queue of jobs, image by image and fair among clients. No threads, no clocks, no torch.

The slots of a batch go round the clients, one image each, so that a client that asks for a hundred images makes its own
requests wait, and nobody else's.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dalle.apps.server.events import Listener
from dalle.images.size import Size

if TYPE_CHECKING:
    from dalle.pipelines.init_image import InitImage
    from dalle.pipelines.request import Request


@dataclass(eq=False)
class Job:
    """The candidates of one request of a client.

    Attributes:
        request: what to generate; its seeds are the candidates.
        client: who sent it, for fairness.
        lead: image tokens that its candidates keep at the start: batches are of one lead and one size.
        listener: receives its events (dalle/apps/server/events.py); called in the worker's thread.
        previews: how many of the first image tokens must be drawn for each preview, in order.
        waiting: candidates that are in no batch yet.
        canceled: its client has left.
        resumed: candidate -> the codes that it had when its batch was interrupted, to go on from.
    """

    request: Request
    client: str
    lead: int
    listener: Listener
    previews: tuple[int, ...] = ()
    waiting: deque[int] = field(default_factory=deque)
    canceled: bool = False
    resumed: dict[int, InitImage] = field(default_factory=dict)

    @property
    def kind(self) -> tuple[int, Size | None]:
        """What all images of a batch have in common."""
        return self.lead, self.request.size

    def __post_init__(self) -> None:
        self.waiting.extend(range(len(self.request.seeds)))


@dataclass(frozen=True)
class Unit:
    """One candidate of a job."""

    job: Job
    index: int


class Full(Exception):
    """No room for a job; `by_client`: its client's limit is reached, not the server's."""

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
        """Append a job.

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

    def take(self, size: int, mixed: bool = False) -> list[Unit]:
        """At most `size` images, all of the kind of the one that has waited longest in its turn unless `mixed`."""
        units: list[Unit] = []
        kind: tuple[int, Size | None] | None = None
        turn = deque(self.clients)  # a copy, as clients move below
        while turn and len(units) < size:
            client = turn.popleft()
            jobs = self.clients[client]
            job = next((one for one in jobs if one.waiting and (mixed or kind in (None, one.kind))), None)
            if job is None:
                continue
            kind = job.kind
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
        """Free the slot of an image that is finished or canceled."""
        self._uncount(unit.job.client, 1)

    def drop(self, job: Job) -> None:
        """Remove the waiting images of a job."""
        self._uncount(job.client, len(job.waiting))
        job.waiting.clear()
        jobs = self.clients.get(job.client, deque())
        if job in jobs:
            jobs.remove(job)
            if not jobs:
                del self.clients[job.client]

    def jobs(self) -> list[Job]:
        """All jobs with waiting images."""
        return [job for jobs in self.clients.values() for job in jobs]

    def _uncount(self, client: str, count: int) -> None:
        self.held[client] -= count
        if self.held[client] <= 0:
            del self.held[client]
