"""Images in a rolling batch: one that arrives joins at the next token, one that is finished or canceled leaves."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from dalle.apps.server.batch import Batches, notify_job
from dalle.apps.server.events import Drawn, Preview, Stopping
from dalle.apps.server.queue import Unit
from dalle.generation.rolling import Candidate, RollingBatch
from dalle.pipelines.request import Request

log = logging.getLogger("dalle.server")

More = Callable[[int], Sequence[Unit]]
"""Returns the units that join where there is room for so many."""


@dataclass
class _Place:
    """An image that is being generated."""

    unit: Unit
    sent: int = 0  # previews


class RollingBatches:
    """Runs rolling batches; what fails in one is left to `Batches`, which find out which of its jobs is to blame."""

    def __init__(self, batches: Batches, size: int) -> None:
        """Prepare them.

        Args:
            batches: for what fails, with the callbacks into the worker.
            size: images in a batch at most.
        """
        self.batches, self.size = batches, size
        self.pipe, self.metrics, self.host = batches.pipe, batches.metrics, batches.host

    @torch.no_grad()
    def draw(self, units: Sequence[Unit], more: More) -> None:
        """Generate units and those that `more` gives meanwhile, until none is left; each is reported and released."""
        rolling, waiting = RollingBatch(self.pipe.model, self.size), list(units)
        active: dict[Candidate, _Place] = {}
        try:
            while waiting or active:
                began, room = time.perf_counter(), rolling.size - len(active)
                self._join(rolling, active, waiting[:room])
                del waiting[:room]
                self._step(rolling, active)
                self.metrics.add("dalle_drawing_seconds_total", time.perf_counter() - began)
                if not waiting and len(active) < rolling.size:
                    waiting += more(rolling.size - len(active))
        except Exception as error:
            rolling.close()  # before memory is needed again
            left = [*(place.unit for place in active.values()), *waiting]
            if not isinstance(error, Stopping):
                log.warning("a batch of %d failed (%s): it is drawn anew", len(left), error)
            self._draw_apart(left)
        finally:
            rolling.close()

    def _join(self, rolling: RollingBatch, active: dict[Candidate, _Place], units: Sequence[Unit]) -> None:
        """Take units in; those that cannot be are drawn apart."""
        if not units:
            return
        try:
            candidates = self.pipe.candidates([_request(unit) for unit in units])
            rolling.join(candidates)
        except Exception as error:
            log.warning("%d images cannot join (%s): they are drawn apart", len(units), error)
            self._draw_apart(units)
            return
        active.update({one: _Place(unit) for one, unit in zip(candidates, units, strict=True)})
        self.metrics.observe("dalle_batch_size", len(active))
        self.metrics.add("dalle_image_tokens_total", len(units))

    def _draw_apart(self, units: Sequence[Unit]) -> None:
        for lead in dict.fromkeys(unit.job.lead for unit in units):
            self.batches.draw([unit for unit in units if unit.job.lead == lead])

    def _step(self, rolling: RollingBatch, active: dict[Candidate, _Place]) -> None:
        """One token of each image, and what is due before and after it."""
        self.host.between_steps()
        for candidate in [one for one, place in active.items() if place.unit.job.canceled]:
            rolling.leave(candidate)
            self.metrics.add("dalle_canceled_images_total")
            self.host.release(active.pop(candidate).unit)
        self._report_finished(rolling, active)  # of some images everything is given
        if not active:
            return
        rolling.step()
        self.metrics.add("dalle_image_tokens_total", len(active))
        for candidate, place in active.items():
            self._send_previews(rolling, candidate, place)
        self._report_finished(rolling, active)

    def _send_previews(self, rolling: RollingBatch, candidate: Candidate, place: _Place) -> None:
        due = place.unit.job.previews
        if place.sent == len(due):
            return
        codes, settled = rolling.codes(candidate)
        while place.sent < len(due) and due[place.sent] <= settled:
            image = self.batches.preview(place.unit, codes, settled)
            notify_job(place.unit.job, Preview(place.unit.index, image, place.sent, settled / len(codes)))
            place.sent += 1

    def _report_finished(self, rolling: RollingBatch, active: dict[Candidate, _Place]) -> None:
        found = rolling.finished()
        if not found:
            return
        units = [active[candidate].unit for candidate in found]
        requests = [_request(unit) for unit in units]
        results = self.pipe.finish(torch.stack(list(found.values())), requests)
        words = self.batches.unfamiliar([request.prompt for request in requests])
        self.metrics.add("dalle_images_total", len(units))
        for candidate, unit, result, own in zip(found, units, results, words, strict=True):
            del active[candidate]
            self.host.release(unit)
            notify_job(unit.job, Drawn(unit.index, result, own))


def _request(unit: Unit) -> Request:
    """The request of one image."""
    request = unit.job.request
    return replace(request, seeds=(request.seeds[unit.index],))
