"""The one thread that computes: batches of images, short calls between their steps, long tasks between batches."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from dalle.apps.server.batch import Batches, Host
from dalle.apps.server.events import Done, Failed, Listener, Progress, Stopping, notify
from dalle.apps.server.metrics import COUNTS, SECONDS, Metrics
from dalle.apps.server.queue import FairQueue, Full, Job, Unit
from dalle.apps.server.rolling import RollingBatches
from dalle.generation.options import EngineOptions
from dalle.generation.rolling import RollingBatch
from dalle.pipelines.text_to_image import TextToImage

T = TypeVar("T")

_CALLS = 64  # short calls that may wait
_TASKS = 8  # tasks that may wait or run


@dataclass(eq=False)
class Task:
    """Long work that yields to image generation: a painting, a diffusion.

    Attributes:
        client: who asked for it; a client has one at a time.
        work: runs in the worker's thread. It calls its first argument between its steps, which raises if the task is
            canceled, and its second with each progress to report; its result is sent as `Done`.
        listener: receives `Progress`, `Done` or `Failed`.
        canceled: its client has left.
    """

    client: str
    work: Callable[[Callable[[], None], Callable[[Any], None]], Any]
    listener: Listener
    canceled: bool = False


class _Canceled(Exception):
    """The client of the running task has left."""


class Worker:
    """Generates jobs in batches, and runs short calls between two steps of a batch.

    New jobs join the batch at the next token (`RollingBatches`), or where the model knows one position the next batch
    (`Batches`); options, prompts, seeds and kept codes differ from row to row. When a client hangs up, its rows leave.
    Between two steps of a long task one batch of the waiting images is generated, so that neither starves the other.

    One thread, as a model is not safe to call from several, and two would only share the same cores or GPU.
    """

    def __init__(self, pipe: TextToImage, queue: FairQueue, max_batch: int, window: int = 1) -> None:
        self.pipe, self.queue, self.max_batch = pipe, queue, max_batch
        self.metrics = Metrics()
        self._declare()
        host = Host(self._release, self.cancel, self._between_steps)
        self._batches = Batches(pipe, EngineOptions(window=window), self.metrics, host)
        # Jacobi decoding runs several tokens of each image at a time, from one position
        rolls = window == 1 and RollingBatch.supports(pipe.model)
        self._rolling = RollingBatches(self._batches, max_batch) if rolls else None
        self._changed = threading.Condition()
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._tasks: deque[Task] = deque()
        self.task: Task | None = None  # running
        self._clients: Counter[str] = Counter()  # tasks waiting or running, by client
        self._stop = self.draining = False
        self._active: list[Unit] = []
        self._thread = threading.Thread(target=self._run, name="dalle-worker", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def busy(self) -> bool:
        """Whether anything is running or waiting."""
        with self._changed:
            return bool(self._active or self._calls or self.task or self._tasks or len(self.queue))

    @property
    def seconds_per_image(self) -> float:
        """Mean time per image so far, in batches."""
        images = self.metrics.value("dalle_images_total")
        return self.metrics.value("dalle_drawing_seconds_total") / images if images else 1.0

    def submit(self, job: Job) -> None:
        """Queue a job, for the batch that runs or the next one.

        Raises:
            Full: there is no room.
            Stopping: the server is shutting down.
        """
        with self._changed:
            if self.draining:
                raise Stopping
            self.queue.add(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Cancel a job: its waiting images are dropped, and those of a batch leave it at the next step."""
        with self._changed:
            job.canceled = True
            self.queue.drop(job)

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Run a short function in the worker's thread, at the next step.

        Raises:
            Full: too many wait.
            Stopping: the server is shutting down.
        """
        future: Future[T] = Future()
        with self._changed:
            if self.draining:
                raise Stopping
            if len(self._calls) >= _CALLS:
                raise Full(len(self._calls), _CALLS, False)
            self._calls.append((future, function))
            self._changed.notify()
        return future

    def submit_task(self, task: Task) -> None:
        """Queue a task.

        Raises:
            Full: there is no room, or the client has one already.
            Stopping: the server is shutting down.
        """
        with self._changed:
            if self.draining:
                raise Stopping
            if self._clients[task.client]:
                raise Full(1, 1, True)
            if self._clients.total() >= _TASKS:
                raise Full(self._clients.total(), _TASKS, False)
            self._clients[task.client] += 1
            self._tasks.append(task)
            self._changed.notify()

    def cancel_task(self, task: Task) -> None:
        """Cancel a task: it ends at its next step, or never starts."""
        with self._changed:
            if task in self._tasks:
                self._tasks.remove(task)
            elif task is not self.task:
                return  # it has ended
            task.canceled = True
            self._forget(task)

    def drain(self) -> None:
        """Accept nothing new; finish what waits."""
        with self._changed:
            self.draining = True

    def stop(self, timeout: float = 10.0) -> None:
        """End the thread after the current step; unfinished jobs and tasks fail."""
        with self._changed:
            self.draining = self._stop = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _declare(self) -> None:
        metrics = self.metrics
        metrics.gauge("dalle_queue_images", "Images that wait in the queue.", self._queued)
        metrics.gauge("dalle_batch_images", "Images in the current batch.", lambda: float(len(self._active)))
        metrics.histogram("dalle_batch_size", "Images in the batch, each time that some have joined it.", COUNTS)
        metrics.histogram("dalle_request_seconds", "Seconds from a request to the end of its response.", SECONDS)
        metrics.counter("dalle_requests_total", "Requests by path and status.")
        metrics.counter("dalle_images_total", "Images generated.")
        metrics.counter("dalle_image_tokens_total", "Image tokens generated; its rate is tokens/s.")
        metrics.counter("dalle_drawing_seconds_total", "Seconds spent on batches.")
        metrics.gauge("dalle_tasks", "Long tasks waiting or running.", lambda: float(self._clients.total()))
        metrics.counter("dalle_tasks_total", "Long tasks finished.")
        metrics.counter("dalle_canceled_tasks_total", "Long tasks canceled.")
        metrics.counter("dalle_canceled_images_total", "Images canceled before they were finished.")

    def _queued(self) -> float:
        with self._changed:
            return float(len(self.queue))

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._stop or self._calls or self._tasks or len(self.queue)):
                    self._changed.wait()
                if self._stop:
                    break
            self._run_calls()
            self._draw_next()
            with self._changed:
                self.task = self._tasks.popleft() if self._tasks else None
            if self.task is not None:
                self._run_task(self.task)
        # Whoever still waits when the thread ends must be answered
        for future, _ in self._calls:
            if future.set_running_or_notify_cancel():  # else it was canceled while it waited
                future.set_exception(Stopping())
        for listener in (*(job.listener for job in self.queue.jobs()), *(task.listener for task in self._tasks)):
            notify(listener, Failed(Stopping()))

    def _draw_next(self) -> None:
        """Generate the waiting images, if there are any: a batch of them, or all that come if they can join it."""
        units = self._taken(self.max_batch)
        if units and self._rolling is not None:
            self._rolling.draw(units, self._joining)
        elif units:
            self._batches.draw(units)

    def _taken(self, room: int) -> list[Unit]:
        with self._changed:
            units = self.queue.take(room, mixed=self._rolling is not None)
            self._active = [*self._active, *units]
        return units

    def _joining(self, room: int) -> list[Unit]:
        """Images that join the batch; none while a task runs or waits, whose turn would never come else."""
        with self._changed:
            closed = self.task is not None or len(self._tasks) > 0
        return [] if closed else self._taken(room)

    def _run_task(self, task: Task) -> None:
        def step() -> None:
            if task.canceled:
                raise _Canceled
            self._between_steps()
            self._draw_next()

        event: Done | Failed | None = None
        try:
            event = Done(task.work(step, lambda value: notify(task.listener, Progress(value))))
            self.metrics.add("dalle_tasks_total")
        except _Canceled:
            self.metrics.add("dalle_canceled_tasks_total")
        except Exception as error:
            event = Failed(error)
        with self._changed:  # before its client is notified, which may send the next one at once
            self.task = None
            if not task.canceled:
                self._forget(task)
        if event is not None:
            notify(task.listener, event)

    def _forget(self, task: Task) -> None:
        self._clients[task.client] -= 1
        self._clients += Counter()  # drops those without a task

    def _between_steps(self) -> None:
        """Run the short calls that wait; called between two steps of a batch or a task.

        Raises:
            Stopping: the thread has to end.
        """
        if self._stop:
            raise Stopping
        self._run_calls()

    def _release(self, unit: Unit) -> None:
        with self._changed:
            self.queue.release(unit)
            self._active = [one for one in self._active if one is not unit]

    def _run_calls(self) -> None:
        while True:
            with self._changed:
                if not self._calls:
                    return
                future, function = self._calls.popleft()
            if not future.set_running_or_notify_cancel():
                continue  # canceled while it waited
            try:
                value = function()
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(value)
