"""A batch of images: generated together, watched between steps, and continued without a client that leaves.

Letters: B candidates of a batch, N image tokens.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor

from dalle.apps.server.events import Drawn, Failed, Preview, Stopping, notify
from dalle.apps.server.metrics import Metrics
from dalle.apps.server.queue import Job, Unit
from dalle.generation.options import EngineOptions
from dalle.images.transforms import to_image
from dalle.pipelines.familiarity import unfamiliar_words
from dalle.pipelines.init_image import InitImage
from dalle.pipelines.request import Request
from dalle.pipelines.result import Result
from dalle.pipelines.text_to_image import TextToImage

log = logging.getLogger("dalle.server")

_REST = 235  # gray of the rows without codes, in a preview
_KEPT_PROMPTS = 1000  # whose unfamiliar words are kept


class _Interrupted(Exception):
    """A client of the batch has left; `codes` [B, N] are generated up to a token."""

    def __init__(self, codes: Tensor, settled: int) -> None:
        super().__init__(settled)
        self.codes, self.settled = codes, settled


@dataclass(frozen=True)
class Host:
    """Callbacks of a batch into the worker that runs it."""

    release: Callable[[Unit], None]  # an image is finished or canceled: its slot is free
    cancel: Callable[[Job], None]  # a job has failed: drop its waiting images
    between_steps: Callable[[], None]  # called between two steps; an exception ends the batch


class Batches:
    """Runs batches whose rows are all at the same token, for models that know one position; see `RollingBatches`."""

    def __init__(self, pipe: TextToImage, engine: EngineOptions, metrics: Metrics, host: Host) -> None:
        self.pipe, self.engine, self.metrics, self.host = pipe, engine, metrics, host
        self.sized = pipe  # for images of the size of the batch at hand
        self._words: dict[str, tuple[str, ...]] = {}  # prompt -> words that the model has hardly seen

    def unfamiliar(self, prompts: Sequence[str]) -> list[tuple[str, ...]]:
        """The words of each prompt that the model has hardly seen in training; those of the last prompts are kept.

        Where they cannot be found this is logged, and there are none: images that are finished must not be lost for it.
        """
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._words]
        if len(self._words) > _KEPT_PROMPTS:
            self._words.clear()
            new = list(dict.fromkeys(prompts))
        try:
            found = unfamiliar_words(self.pipe.model, self.pipe.text_tokenizer, new)
            self._words.update(zip(new, found, strict=True))
        except Exception as error:  # such as too little memory
            log.error("the unfamiliar words of %d prompts cannot be found", len(new), exc_info=error)
        return [self._words.get(prompt, ()) for prompt in prompts]

    def draw(self, units: list[Unit]) -> None:
        """Generate units of one lead and size; whatever happens, each is reported and its slot released."""
        self.metrics.observe("dalle_batch_size", len(units))
        size = units[0].job.request.size
        self.sized = self.pipe if size is None else self.pipe.sized(size)
        before = time.perf_counter()
        while units:
            try:
                results = self._draw(units)
            except _Interrupted as broken:
                units = self._left(units, broken)
            except Exception as error:
                # One of several jobs may have caused it: drawn one by one, only that one fails
                if not isinstance(error, Stopping) and len({unit.job for unit in units}) > 1:
                    log.warning("a batch of %d failed (%s); its jobs are drawn one by one", len(units), error)
                    for job in dict.fromkeys(unit.job for unit in units):
                        self.draw([unit for unit in units if unit.job is job])
                    return
                for unit in units:
                    self.host.release(unit)
                for job in dict.fromkeys(unit.job for unit in units):
                    self.host.cancel(job)
                    notify(job.listener, Failed(error))
                return
            else:
                self.metrics.add("dalle_images_total", len(units))
                self.metrics.add("dalle_drawing_seconds_total", time.perf_counter() - before)
                words = self.unfamiliar([unit.job.request.prompt for unit in units])
                for unit, result, own in zip(units, results, words, strict=True):
                    self.host.release(unit)
                    notify_job(unit.job, Drawn(unit.index, result, own))
                return

    def _left(self, units: list[Unit], broken: _Interrupted) -> list[Unit]:
        """The units whose clients still wait, with the codes so far as their init image."""
        left = []
        for unit, codes in zip(units, broken.codes, strict=True):
            if unit.job.canceled:
                self.metrics.add("dalle_canceled_images_total")
                self.host.release(unit)
                continue
            unit.job.resumed[unit.index] = self._resumed(_init_image(unit), codes, broken.settled)
            left.append(unit)
        return left

    def _resumed(self, given: InitImage | None, codes: Tensor, settled: int) -> InitImage:
        """An init image that keeps what was given and the first `settled` codes of [N]."""
        grid = self.sized.grid
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
            # Units that go on from codes of their own are requests of their own
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
            self._between_steps(units, rows, codes, settled, last)
            last = settled

        results = self.sized.draw(requests, self.engine, watch=watch)
        single = [_one(result, place) for result in results for place in range(len(result.seeds))]
        return [single[row] for row in rows]

    def _between_steps(self, units: list[Unit], rows: list[int], codes: Tensor, settled: int, last: int) -> None:
        """Run the worker's short calls, notice who has left, send previews that are due."""
        self.host.between_steps()
        if any(unit.job.canceled for unit in units):
            raise _Interrupted(codes[rows], settled)
        for unit, row in zip(units, rows, strict=True):
            for number, at in enumerate(unit.job.previews):
                if last < at <= settled:
                    share = settled / codes.shape[1]
                    notify_job(unit.job, Preview(unit.index, self.preview(unit, codes[row], settled), number, share))

    def preview(self, unit: Unit, codes: Tensor, settled: int) -> Image.Image:
        """The finished rows of codes [N], decoded; below them the init image, or gray."""
        pipe, given = self.sized, _init_image(unit)
        rows, columns = pipe.grid
        pixels = pipe.image_tokenizer.decode(codes.view(1, rows, columns)).float()[0]  # [3, H, W]
        edge = settled // columns * pipe.image_tokenizer.factor  # the first row of pixels without codes
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
        result.weight,
    )


def notify_job(job: Job, event: Preview | Drawn) -> None:
    """Send an event of a job, unless its client has left."""
    if not job.canceled:
        notify(job.listener, event)


def previews(count: int, length: int, columns: int, lead: int) -> tuple[int, ...]:
    """After how many image tokens `count` previews are due: at row ends, evenly over the rows to generate."""
    rows: Iterable[int] = range(lead // columns + 1, length // columns)
    ends = [row * columns for row in rows]
    if count >= len(ends):
        return tuple(ends)
    return tuple(ends[round((i + 1) * (len(ends) + 1) / (count + 1)) - 1] for i in range(count))
