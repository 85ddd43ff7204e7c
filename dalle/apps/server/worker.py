"""The one thread that computes: takes what waits as a batch whenever the last one is done, and short calls in between.

Letters: B candidates of a batch, N image tokens.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from dalle.apps.server.metrics import COUNTS, SECONDS, Metrics
from dalle.apps.server.queue import FairQueue, Full, Job, Unit
from dalle.generation.options import EngineOptions
from dalle.images.transforms import to_image
from dalle.pipelines.init_image import InitImage
from dalle.pipelines.request import Request
from dalle.pipelines.result import Result
from dalle.pipelines.text_to_image import TextToImage

log = logging.getLogger("dalle.server")
T = TypeVar("T")

_CALLS = 64  # short calls that may wait
_REST = 235  # grey of what is not drawn yet, in a preview


@dataclass(frozen=True)
class Preview:
    """An image that is half drawn."""

    index: int  # candidate of the job
    image: Image.Image
    number: int  # of the job's previews, from 0
    share: float  # of the image that is drawn


@dataclass(frozen=True)
class Drawn:
    """A candidate that is finished."""

    index: int
    result: Result  # of this one image


@dataclass(frozen=True)
class Failed:
    """The job could not be drawn."""

    error: Exception


class Stopping(Exception):
    """The server takes nothing new."""


class _BrokenOff(Exception):
    """Somebody in the batch is not waited for any more; codes [B, N] have been drawn up to a token."""

    def __init__(self, codes: Tensor, settled: int) -> None:
        super().__init__(settled)
        self.codes, self.settled = codes, settled


class Worker:
    """Draws jobs in batches, and runs short calls between two steps of a batch.

    A batch's rows stand at the same token: kernels, masks and recorded steps know one position. So who arrives joins
    the next batch; options, prompts, seeds and kept codes differ from row to row. When a client hangs up, its rows
    leave: the batch is broken off, and goes on without them from the codes that it has.
    """

    def __init__(self, pipe: TextToImage, queue: FairQueue, max_batch: int, window: int = 1) -> None:
        self.pipe, self.queue, self.max_batch = pipe, queue, max_batch
        self.engine = EngineOptions(window=window)
        self.metrics = Metrics()
        self._declare()
        self._changed = threading.Condition()
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
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
            return bool(self._active or self._calls or len(self.queue))

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
        metrics.counter("dalle_cancelled_images_total", "Images that were given up before they were finished.")

    def _queued(self) -> float:
        with self._changed:
            return float(len(self.queue))

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._stop or self._calls or len(self.queue)):
                    self._changed.wait()
                if self._stop:
                    break
            self._run_calls()
            with self._changed:
                self._active = self.queue.take(self.max_batch)
            if self._active:
                self._batch(list(self._active))
        for future, _ in self._calls:
            future.set_exception(Stopping())
        for job in self.queue.jobs():
            _tell(job, Failed(Stopping()))

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

    def _batch(self, units: list[Unit]) -> None:
        """Draw units of one lead; whatever happens, each is told of and let go."""
        self.metrics.observe("dalle_batch_size", len(units))
        before = time.perf_counter()
        while units:
            try:
                results = self._draw(units)
            except _BrokenOff as broken:
                units = self._left(units, broken)
            except Exception as error:
                if not isinstance(error, Stopping) and len({unit.job for unit in units}) > 1:
                    log.warning("a batch of %d failed (%s); its jobs are drawn one by one", len(units), error)
                    for job in dict.fromkeys(unit.job for unit in units):
                        self._batch([unit for unit in units if unit.job is job])
                    return
                for unit in units:
                    self._let_go(unit)
                for job in dict.fromkeys(unit.job for unit in units):
                    self.cancel(job)
                    _tell(job, Failed(error))
                return
            else:
                self.metrics.add("dalle_images_total", len(units))
                self.metrics.add("dalle_drawing_seconds_total", time.perf_counter() - before)
                for unit, result in zip(units, results, strict=True):
                    self._let_go(unit)
                    _tell(unit.job, Drawn(unit.index, result))
                return

    def _let_go(self, unit: Unit) -> None:
        with self._changed:
            self.queue.release(unit)
            self._active = [one for one in self._active if one is not unit]

    def _left(self, units: list[Unit], broken: _BrokenOff) -> list[Unit]:
        """Who is still waited for, with the codes so far as their start."""
        left = []
        for unit, codes in zip(units, broken.codes, strict=True):
            if unit.job.cancelled:
                self.metrics.add("dalle_cancelled_images_total")
                self._let_go(unit)
                continue
            unit.job.resumed[unit.index] = self._resumed(_init_image(unit), codes, broken.settled)
            left.append(unit)
        return left

    def _resumed(self, given: InitImage | None, codes: Tensor, settled: int) -> InitImage:
        """What is known of an image, and its first `settled` codes [N] too."""
        grid = self.pipe.image_tokenizer.grid
        known = torch.zeros(grid, dtype=torch.bool) if given is None else given.known_mask.clone()
        own = torch.zeros(grid, dtype=torch.int64) if given is None else given.codes.reshape(-1, *grid)[0].cpu().clone()
        known.view(-1)[:settled] = True
        own.view(-1)[:settled] = codes[:settled].cpu()
        return InitImage(own, known) if given is None else replace(given, codes=own, known_mask=known)

    def _draw(self, units: list[Unit]) -> list[Result]:
        """A result of one image for each unit. Seeds of one job that start alike are one request: one text."""
        requests: list[Request] = []
        order: list[tuple[int, int]] = []  # of each unit: request, and place in it
        at: dict[Job, int] = {}
        for unit in units:
            job = unit.job
            seed = job.request.seeds[unit.index]
            if job in at and unit.index not in job.resumed:
                requests[at[job]] = replace(requests[at[job]], seeds=(*requests[at[job]].seeds, seed))
            else:
                at[job] = len(requests)
                requests.append(replace(job.request, seeds=(seed,), init_image=_init_image(unit)))
            order.append((at[job], len(requests[at[job]].seeds) - 1))
        before = [sum(len(one.seeds) for one in requests[:number]) for number in range(len(requests))]
        rows = [before[number] + place for number, place in order]  # of each unit, in the batch's codes
        last: int | None = None

        def watch(codes: Tensor, settled: int) -> None:
            nonlocal last
            last = settled - 1 if last is None else last  # the first step is one token
            self.metrics.add("dalle_image_tokens_total", len(units) * (settled - last))
            self._between(units, rows, codes, settled, last)
            last = settled

        results = self.pipe.draw(requests, self.engine, watch=watch)
        single = [_one(result, place) for result in results for place in range(len(result.seeds))]
        return [single[row] for row in rows]

    def _between(self, units: list[Unit], rows: list[int], codes: Tensor, settled: int, last: int) -> None:
        """What is done between two steps."""
        if self._stop:
            raise Stopping
        self._run_calls()
        if any(unit.job.cancelled for unit in units):
            raise _BrokenOff(codes[rows], settled)
        for unit, row in zip(units, rows, strict=True):
            for number, at in enumerate(unit.job.previews):
                if last < at <= settled:
                    share = settled / codes.shape[1]
                    _tell(unit.job, Preview(unit.index, self._preview(unit, codes[row], settled), number, share))

    def _preview(self, unit: Unit, codes: Tensor, settled: int) -> Image.Image:
        """The rows that are drawn of codes [N]; below them the image that is gone on from, or grey."""
        pipe, given = self.pipe, _init_image(unit)
        rows, columns = pipe.image_tokenizer.grid
        pixels = pipe.image_tokenizer.decode(codes.view(1, rows, columns)).float()[0]  # [3, H, W]
        edge = settled // columns * (pipe.image_size // rows)
        if given is not None and given.inpaint_mask is not None and given.image is not None:
            pixels = given.paste(pixels)
            pixels[:, edge:] = given.image.to(pixels.device)[:, edge:]
        else:
            pixels[:, edge:] = _REST / 255
        return to_image(pixels[None])


def _init_image(unit: Unit) -> InitImage | None:
    return unit.job.resumed.get(unit.index, unit.job.request.init_image)


def _one(result: Result, place: int) -> Result:
    return Result(
        result.prompt,
        [result.images[place]],
        None if result.scores is None else [result.scores[place]],
        None if result.codes is None else result.codes[place : place + 1],
        [result.seeds[place]],
    )


def _tell(job: Job, event: Preview | Drawn | Failed) -> None:
    if job.cancelled and not isinstance(event, Failed):
        return
    try:
        job.tell(event)
    except RuntimeError as error:  # the event loop that waited for it is closed
        log.info("nobody is there to be told of an image: %s", error)


def previews(count: int, length: int, columns: int, lead: int) -> tuple[int, ...]:
    """After how many image tokens `count` previews are due: at the ends of rows, evenly over what is drawn."""
    rows: Iterable[int] = range(lead // columns + 1, length // columns)
    ends = [row * columns for row in rows]
    if count >= len(ends):
        return tuple(ends)
    return tuple(ends[round((i + 1) * (len(ends) + 1) / (count + 1)) - 1] for i in range(count))
