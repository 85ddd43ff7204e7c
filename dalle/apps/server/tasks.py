"""Long work of requests: paintings and an unCLIP's images, as one answer or as a stream with previews."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from dalle.apps.server import answers
from dalle.apps.server.drawing import Drawing, failure, unless_gone
from dalle.apps.server.errors import ApiError
from dalle.apps.server.events import Done, Failed, Progress
from dalle.apps.server.worker import Task

Work = Callable[[Callable[[], None], Callable[[Any], None]], Any]
"""As `Task.work`; its progress and its result are the JSON of events."""


class LongWork:
    """Runs work as a task of the worker, and answers with its result or its events."""

    def __init__(self, drawing: Drawing) -> None:
        self.drawing = drawing

    async def answer(self, request: Request, work: Work, stream: bool, kind: str) -> Response:
        """Do the work and answer: JSON at the end, or server-sent events as it goes.

        Args:
            request: whose client ends the work by hanging up.
            work: the work.
            stream: whether to answer with events, KIND.partial_image and KIND.completed.
            kind: prefix of the events' names.

        Raises:
            ApiError: there is no room, it took too long, or it failed; in a stream that has begun it is an event.
        """
        events = self._follow(request, work)
        try:
            # The first event before the response begins: what fails until then still gets a status of its own
            first = await unless_gone(request, anext(events)) if stream else None
            if first is None:
                return JSONResponse(await unless_gone(request, _last(events)))
        except BaseException:  # also if the request is canceled
            await events.aclose()
            raise
        return StreamingResponse(
            _stream(events, first, kind), media_type="text/event-stream", headers=answers.STREAM_HEADERS
        )

    async def _follow(self, http: Request, work: Work) -> AsyncGenerator[Progress | Done]:
        """Events of the work; closing the generator cancels it."""
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Progress | Done | Failed] = asyncio.Queue()
        # The listener runs in the worker's thread, which must not touch a queue of asyncio itself
        task = Task(http.state.client, work, lambda event: loop.call_soon_threadsafe(events.put_nowait, event))
        self.drawing.taken(lambda: self.drawing.worker.submit_task(task), "paintings, variations or blends")
        limit = self.drawing.settings.request_timeout
        end = loop.time() + limit
        try:
            while True:
                try:
                    event = await asyncio.wait_for(events.get(), max(0.0, end - loop.time()))
                except asyncio.TimeoutError:
                    raise ApiError(f"not done in {limit:g} s: ask for fewer steps", status=504) from None
                if isinstance(event, Failed):
                    raise failure(event.error)
                yield event
                if isinstance(event, Done):
                    return
        finally:
            # Also where the client hangs up, which closes this generator
            self.drawing.worker.cancel_task(task)


async def _last(events: AsyncGenerator[Progress | Done]) -> Any:
    async with contextlib.aclosing(events):
        async for event in events:
            if isinstance(event, Done):
                return event.value
    raise AssertionError("a task ends with Done or an error")


async def _stream(events: AsyncGenerator[Progress | Done], first: Progress | Done, kind: str) -> AsyncIterator[str]:
    event: Progress | Done | None = first
    async with contextlib.aclosing(events):
        while event is not None:
            name = "partial_image" if isinstance(event, Progress) else "completed"
            yield answers.event(f"{kind}.{name}", event.value)
            try:
                event = await anext(events, None)
            except ApiError as error:
                yield answers.failed(error)
                return
