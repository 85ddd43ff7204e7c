"""The worker's thread answers whoever waits, and loses no image that is finished."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from dalle.apps.server.events import Drawn, Failed, Stopping
from dalle.apps.server.queue import FairQueue, Job
from dalle.apps.server.worker import Worker
from dalle.generation.options import SamplingConfig
from dalle.generation.rolling import RollingBatch
from dalle.pipelines.request import Request
from dalle.pipelines.text_to_image import TextToImage


def submitted(worker: Worker) -> list[Any]:
    """The events of two images, which are submitted."""
    events: list[Any] = []
    worker.submit(Job(Request("a red heart", (1, 2), SamplingConfig()), "a", 0, events.append))
    return events


def test_calls_that_were_canceled_keep_the_end_from_nobody(tiny_pipe: TextToImage) -> None:
    worker = Worker(tiny_pipe, FairQueue(9, 9), 8)
    canceled, waiting, events = worker.call(lambda: 1), worker.call(lambda: 2), submitted(worker)
    canceled.cancel()
    worker.stop()
    worker._run()
    assert isinstance(waiting.exception(0), Stopping)
    (event,) = events
    assert isinstance(event, Failed) and isinstance(event.error, Stopping)


@pytest.mark.parametrize("rolls", [True, False])
def test_images_are_not_lost_where_their_prompts_words_cannot_be_found(
    rolls: bool, tiny_pipe: TextToImage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (alone,) = tiny_pipe("a red heart", n=2, seed=1)

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("dalle.apps.server.batch.unfamiliar_words", fail)
    if not rolls:
        monkeypatch.setattr(RollingBatch, "supports", lambda _model: False)
    worker = Worker(tiny_pipe, FairQueue(9, 9), 8)
    events = submitted(worker)
    with caplog.at_level(logging.ERROR):
        worker._draw_next()
    expected = {seed: image.tobytes() for seed, image in zip(alone.seeds, alone.images, strict=True)}
    assert all(isinstance(event, Drawn) and event.unfamiliar == () for event in events)
    assert {event.result.seeds[0]: event.result.images[0].tobytes() for event in events} == expected
    assert not worker.queue.held and not worker._active and "words of 1 prompts cannot be found" in caplog.text
