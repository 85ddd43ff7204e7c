"""What a worker's thread tells those who wait: previews, images, progress, the end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image

from dalle.pipelines.result import Result

log = logging.getLogger("dalle.server")

Tell = Callable[[Any], object]


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
class Progress:
    """How far a task is."""

    value: Any


@dataclass(frozen=True)
class Done:
    """A task is finished."""

    value: Any


@dataclass(frozen=True)
class Failed:
    """The job or task could not be done."""

    error: Exception


class Stopping(Exception):
    """The server takes nothing new."""


def tell(listener: Tell, event: Preview | Drawn | Progress | Done | Failed) -> None:
    """Hand an event over, if there is still somebody to hear it."""
    try:
        listener(event)
    except RuntimeError as error:  # the event loop that waited for it is closed
        log.info("nobody is there to be told: %s", error)
