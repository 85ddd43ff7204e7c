"""Events that the worker's thread sends to waiting requests: previews, images, progress, the end. Imports no torch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

    from dalle.pipelines.result import Result

log = logging.getLogger("dalle.server")

Listener = Callable[[Any], object]
"""Receives the events of one job or task, in the worker's thread: it must only hand them on."""


@dataclass(frozen=True)
class Preview:
    """An unfinished image."""

    index: int  # candidate of the job
    image: Image.Image
    number: int  # of the job's previews, from 0
    share: float  # of its image tokens that are generated


@dataclass(frozen=True)
class Drawn:
    """A candidate that is finished."""

    index: int
    result: Result  # of this one image
    unfamiliar: tuple[str, ...] = ()  # words of the prompt that the model has hardly seen in training


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
    """The server is shutting down and accepts nothing new."""


def notify(listener: Listener, event: Preview | Drawn | Progress | Done | Failed) -> None:
    """Send an event, unless its receiver is gone."""
    try:
        listener(event)
    except RuntimeError as error:  # the event loop that waited for it is closed
        log.info("an event has no receiver any more: %s", error)
