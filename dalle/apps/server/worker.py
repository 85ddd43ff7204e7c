"""The one thread that computes: batches of images, short calls between their steps, and long tasks in between."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from dalle.apps.server.batch import Batches, Host
from dalle.apps.server.events import Done, Failed, Progress, Stopping, Tell, tell
from dalle.apps.server.metrics import COUNTS, SECONDS, Metrics
from dalle.apps.server.queue import FairQueue, Full, Job, Unit
from dalle.generation.options import EngineOptions
from dalle.pipelines.text_to_image import TextToImage

T = TypeVar("T")

_CALLS = 64  # short calls that may wait
_TASKS = 8  # tasks that may wait or be at work


@dataclass(eq=False)
class Task:
    """Long work that gives way to drawing: a painting, a diffusion.

    Attributes:
        client: whose it is: a client has one at a time.
        work: what to do, in the worker's thread. It calls its first argument between its steps, which raises where it
            is not wanted any more, and its second to tell how far it is; what it returns is told as `Done`.
        tell: takes `Progress`, `Done` or `Failed`.
        cancelled: nobody wants it any more.
    """

    client: str
    work: Callable[[Callable[[], None], Callable[[Any], None]], Any]
    tell: Tell
    cancelled: bool = False


class _NotWanted(Exception):
    """Nobody waits for the task any more."""


class Worker:
    """Draws jobs in batches, and runs short calls between two steps of a batch.

    Who arrives joins the next batch; options, prompts, seeds and kept codes differ from row to row. When a client hangs
    up, its rows leave: the batch is broken off, and goes on without them from the codes that it has. Between two steps
    of a long task the images that wait are drawn, one batch of them, so that neither keeps the other from getting on.
    """

    def __init__(self, pipe: TextToImage, queue: FairQueue, max_batch: int, window: int = 1) -> None:
        self.pipe, self.queue, self.max_batch = pipe, queue, max_batch
        self.metrics = Metrics()
        self._declare()
        host = Host(self._let_go, self.cancel, self._between)
        self._batches = Batches(pipe, EngineOptions(window=window), self.metrics, host)
        self._changed = threading.Condition()
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._tasks: deque[Task] = deque()
        self.task: Task | None = None  # at work
        self._clients: Counter[str] = Counter()  # tasks that wait or are at work, by client
        self._stop = self.draining = False
        self._active: list[Unit] = []
        self._thread = threading.Thread(target=self._run, name="dalle-worker", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread is there."""
        return self._thread.is_alive()

    @property
    def busy(self) -> bool:
        """Whether something is computed, or waits to be."""
        with self._changed:
            return bool(self._active or self._calls or self.task or self._tasks or len(self.queue))

    @property
    def seconds_per_image(self) -> float:
        """How long an image has taken so far, of the time spent on drawing."""
        images = self.metrics.value("dalle_images_total")
        return self.metrics.value("dalle_drawing_seconds_total") / images if images else 1.0

    def submit(self, job: Job) -> None:
        """Let a job wait for the next batch.

        Raises:
            Full: there is no room.
            Stopping: nothing new is taken.
        """
        with self._changed:
            if self.draining:
                raise Stopping
            self.queue.add(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Nobody waits for this job any more: what is not drawn will not be."""
        with self._changed:
            job.cancelled = True
            self.queue.drop(job)

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Run a short function in the worker's thread, at the next step.

        Raises:
            Full: too many wait.
            Stopping: nothing new is taken.
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
        """Let a task wait for its turn.

        Raises:
            Full: there is no room, or the client has one already.
            Stopping: nothing new is taken.
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
        """Nobody waits for this task any more: it ends at its next step, or does not begin."""
        with self._changed:
            if task in self._tasks:
                self._tasks.remove(task)
            elif task is not self.task:
                return  # it has ended
            task.cancelled = True
            self._forget(task)

    def drain(self) -> None:
        """Take nothing new; what waits is still done."""
        with self._changed:
            self.draining = True

    def stop(self, timeout: float = 10.0) -> None:
        """End the thread after the step that it is at; what is unfinished fails."""
        with self._changed:
            self.draining = self._stop = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _declare(self) -> None:
        metrics = self.metrics
        metrics.gauge("dalle_queue_images", "Images that wait to be drawn.", self._queued)
        metrics.gauge("dalle_batch_images", "Images that are being drawn.", lambda: float(len(self._active)))
        metrics.histogram("dalle_batch_size", "Images of a batch.", COUNTS)
        metrics.histogram("dalle_request_seconds", "From a request to the end of its answer.", SECONDS)
        metrics.counter("dalle_requests_total", "Requests by path and status.")
        metrics.counter("dalle_images_total", "Images that have been drawn.")
        metrics.counter("dalle_image_tokens_total", "Image tokens that have been drawn; its rate is tokens/s.")
        metrics.counter("dalle_drawing_seconds_total", "Time spent on drawing.")
        metrics.gauge("dalle_tasks", "Long tasks that wait or are at work.", lambda: float(self._clients.total()))
        metrics.counter("dalle_tasks_total", "Long tasks that have been finished.")
        metrics.counter("dalle_cancelled_tasks_total", "Long tasks that were given up.")
        metrics.counter("dalle_cancelled_images_total", "Images that were given up before they were finished.")

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
        for future, _ in self._calls:
            future.set_exception(Stopping())
        for listener in (*(job.tell for job in self.queue.jobs()), *(task.tell for task in self._tasks)):
            tell(listener, Failed(Stopping()))

    def _draw_next(self) -> None:
        """Draw a batch of what waits, if anything does."""
        with self._changed:
            self._active = self.queue.take(self.max_batch)
        if self._active:
            self._batches.draw(list(self._active))

    def _run_task(self, task: Task) -> None:
        def step() -> None:
            if task.cancelled:
                raise _NotWanted
            self._between()
            self._draw_next()

        event: Done | Failed | None = None
        try:
            event = Done(task.work(step, lambda value: tell(task.tell, Progress(value))))
            self.metrics.add("dalle_tasks_total")
        except _NotWanted:
            self.metrics.add("dalle_cancelled_tasks_total")
        except Exception as error:
            event = Failed(error)
        with self._changed:  # before its client hears of it, who may send the next one at once
            self.task = None
            if not task.cancelled:
                self._forget(task)
        if event is not None:
            tell(task.tell, event)

    def _forget(self, task: Task) -> None:
        self._clients[task.client] -= 1
        self._clients += Counter()  # drops those without a task

    def _between(self) -> None:
        """What is done between two steps of a batch or a task.

        Raises:
            Stopping: the server ends.
        """
        if self._stop:
            raise Stopping
        self._run_calls()

    def _let_go(self, unit: Unit) -> None:
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
                continue
            try:
                value = function()
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(value)
