"""From a checked request to finished images: limits, seeds, a job of the worker, and its end when nobody waits."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request as HttpRequest

from dalle.apps.server import inputs
from dalle.apps.server.batch import previews
from dalle.apps.server.bodies import MAX_SEED, ImagesBody
from dalle.apps.server.errors import ApiError
from dalle.apps.server.events import Drawn, Failed, Preview, Stopping
from dalle.apps.server.guard import GONE
from dalle.apps.server.queue import Full, Job
from dalle.apps.server.settings import ServeConfig
from dalle.apps.server.worker import Worker
from dalle.device import out_of_memory
from dalle.images.size import Size
from dalle.pipelines.init_image import InitImage
from dalle.pipelines.request import Request
from dalle.pipelines.result import Result
from dalle.pipelines.text_to_image import TextToImage

log = logging.getLogger("dalle.server")
T = TypeVar("T")

_HOLDING = 4  # requests that hold decoded images at a time
_ANSWER = 4  # times --max-pixels, of all images of an answer that are enlarged: each takes time and memory to encode


@dataclass(frozen=True)
class Order:
    """A checked request for images."""

    request: Request
    keep: int  # images to answer with
    options: dict[str, Any]  # for the metadata of its images
    size: Size  # of the files of the answer
    previews: int  # previews of each candidate
    notes: list[str]  # what the client should know


class Drawing:
    """Generates the images of orders with the server's one worker."""

    def __init__(self, pipe: TextToImage, worker: Worker, settings: ServeConfig) -> None:
        self.pipe, self.worker, self.settings = pipe, worker, settings
        self.holding = asyncio.Semaphore(_HOLDING)
        """Taken while a request holds decoded images, which are up to a thousand times as large as their files."""

    def order(
        self,
        body: ImagesBody,
        prompt: str,
        init_image: InitImage | None = None,
        used: dict[str, Any] | None = None,
        keeps: bool = False,
    ) -> Order:
        """Check the options of a body.

        Args:
            body: its options.
            prompt: the prompt.
            init_image: image of which a part is kept.
            used: its entries for the metadata.
            keeps: whether a part of an image is to be kept that has not been read yet.

        Raises:
            ApiError: an option is out of range.
        """
        self._check_texts(prompt, body.negative)
        if body.n > self.settings.max_n:
            raise ApiError(f"n is {body.n}: at most {self.settings.max_n} images at a time", "n")
        if body.partial_images and not body.stream:
            raise ApiError("partial_images goes with stream", "partial_images")
        count = self._candidates(body)
        seed = secrets.randbelow(2**31) if body.seed is None else body.seed
        if seed + count - 1 > MAX_SEED:
            raise ApiError(f"seed is {seed}: image i has seed + i, and the last must be at most 2^63 - 1", "seed")
        try:
            sampling = self.pipe.sampling.updated(**body.sampling())
        except ValueError as error:
            raise ApiError(str(error), str(error).partition(" ")[0]) from None  # which begins with the option's name
        seeds = tuple(range(seed, seed + count))
        size = None if keeps or init_image is not None else self._drawn_size(body.size)
        answered = self._answered_size(body, size or self.pipe.size, count)
        scored = count > body.n
        request = Request(prompt, seeds, sampling, init_image, scored=scored, negative=body.negative, size=size)
        options = {**asdict(sampling), **(used or {}), "dtype": self.settings.dtype}
        options |= {} if size is None else {"size": body.size}
        options |= {} if body.negative is None else {"negative": body.negative}
        return Order(request, body.n, options, answered, body.partial_images, self._notes(prompt))

    def _drawn_size(self, size: str | None) -> Size | None:
        """The size that images are drawn in, if another than the model's own; None: they are resized at the end."""
        if size in (None, "auto"):
            return None
        assert size is not None
        width, height = map(int, size.split("x"))
        if (width, height) == self.pipe.size or not self.pipe.draws((width, height)):
            return None
        return width, height

    def _answered_size(self, body: ImagesBody, drawn: Size, count: int) -> Size:
        """The size of the files of an answer, for which `count` candidates are drawn in the size `drawn`."""
        if body.size in (None, "auto"):
            return drawn
        assert body.size is not None
        width, height = map(int, body.size.split("x"))
        most = self.settings.max_pixels
        if not 0 < width * height <= most:
            raise ApiError(f"size is {body.size}: give WIDTHxHEIGHT, of at most {most:,} pixels, or auto", "size")
        files = body.n + body.partial_images * count
        if (width, height) != drawn and files * width * height > _ANSWER * most:
            message = f"size is {body.size}, of {files} images with previews: at most {_ANSWER * most:,} pixels"
            raise ApiError(f"{message} are answered with", "size")
        return width, height

    def _check_texts(self, prompt: str, negative: str | None) -> None:
        for name, text in (("prompt", prompt), ("negative", negative or "")):
            if len(text) > self.settings.max_prompt:
                message = f"{name} has {len(text):,} characters: at most {self.settings.max_prompt:,} are read"
                raise ApiError(message, name, code="string_above_max_length")
        if negative is None:
            return
        try:
            self.pipe.check_negative(negative)
        except ValueError as error:
            raise ApiError(str(error), "negative") from None

    def _candidates(self, body: ImagesBody) -> int:
        count = body.n if body.candidates is None else body.candidates
        if count < body.n:
            raise ApiError(
                f"candidates is {count}: CLIP chooses n={body.n} of them, give as many at least", "candidates"
            )
        if body.candidates is not None and count > self.settings.max_candidates:
            raise ApiError(f"candidates is {count}: at most {self.settings.max_candidates}", "candidates")
        if count > body.n and self.pipe.clip is None:
            raise ApiError("this server has no CLIP to choose: leave candidates out", "candidates")
        return count

    def _notes(self, prompt: str) -> list[str]:
        length, limit = self.pipe.text_tokens(prompt), self.pipe.model.config.text_length
        if length is None or length <= limit:
            return []
        return [f"the prompt has {length} text tokens, of which the model reads the first {limit}"]

    async def draw(self, http: HttpRequest, order: Order) -> AsyncGenerator[Preview | Drawn]:
        """Events of an order, until its last candidate is finished; closing the generator cancels it.

        Raises:
            ApiError: there is no room, it took too long, or it failed.
        """
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Preview | Drawn | Failed] = asyncio.Queue()
        rows, columns = self.pipe.grid_of(order.request.size)
        given = order.request.init_image
        # Codes that are known from the start on
        lead = 0 if given is None else int(given.known_mask.flatten().int().cumprod(0).sum())
        job = Job(
            order.request,
            http.state.client,
            lead,
            # The listener runs in the worker's thread, which must not touch a queue of asyncio itself
            lambda event: loop.call_soon_threadsafe(events.put_nowait, event),
            previews(order.previews, rows * columns, columns, lead),
        )
        self.taken(lambda: self.worker.submit(job))
        left = len(order.request.seeds)
        end = loop.time() + self.settings.request_timeout
        try:
            while left:
                try:
                    event = await asyncio.wait_for(events.get(), max(0.0, end - loop.time()))
                except asyncio.TimeoutError:
                    limit = self.settings.request_timeout
                    raise ApiError(f"not done in {limit:g} s: ask for fewer images", status=504) from None
                if isinstance(event, Failed):
                    raise failure(event.error)
                left -= isinstance(event, Drawn)
                yield event
        finally:
            self.worker.cancel(job)

    async def results(self, http: HttpRequest, order: Order) -> tuple[Result, tuple[str, ...]]:
        """The images of an order, the best first where CLIP chooses; and words that the model has hardly seen.

        Raises:
            ApiError: see `draw`; or the client has hung up.
        """
        drawn: dict[int, Drawn] = {}
        async with contextlib.aclosing(self.draw(http, order)) as events:
            await unless_gone(http, _collect(events, drawn))
        every = [drawn[index] for index in sorted(drawn)]
        return Result.merged([one.result for one in every]).best(order.keep, distinct=True), every[0].unfamiliar

    async def decoded(self, texts: Sequence[str], param: str) -> list[Image.Image]:
        """Images in base64 or as data: URLs, decoded without holding up other requests meanwhile.

        Raises:
            ApiError: one cannot be read, or they have too many pixels together.
        """
        return await run_in_threadpool(inputs.read_images, texts, param, self.settings.max_pixels)

    async def compute(self, function: Callable[[], T]) -> T:
        """What a short function returns, run in the worker's thread.

        Raises:
            ApiError: there is no room, or what the function refused.
        """
        future: Future[T] = self.taken(lambda: self.worker.call(function))
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.settings.request_timeout)
        except asyncio.TimeoutError:
            raise ApiError(f"not done in {self.settings.request_timeout:g} s", status=504) from None
        except (ApiError, asyncio.CancelledError):
            raise
        except Exception as error:
            raise failure(error) from error

    def taken(self, submit: Callable[[], T], what: str = "images") -> T:
        """What `submit` returns, which asks the worker for something; `what` is counted there.

        Raises:
            ApiError: there is no room, or the server is stopping.
        """
        try:
            return submit()
        except Full as full:
            whose = "of yours wait already" if full.by_client else "wait already"
            wait = full.waiting * self.worker.seconds_per_image  # until those before it are done
            message = f"{full.waiting} {what} {whose}, of {full.limit} that may: try again later"
            raise ApiError(message, status=429, code="rate_limit_exceeded", retry_after=min(wait, 120)) from None
        except Stopping as error:
            raise failure(error) from None


async def _collect(events: AsyncIterator[Preview | Drawn], drawn: dict[int, Drawn]) -> None:
    async for event in events:
        if isinstance(event, Drawn):
            drawn[event.index] = event


async def unless_gone(http: HttpRequest, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns; it is canceled if the client of the request, whose body has been read, hangs up.

    Raises:
        ApiError: it has hung up; nobody will read this.
    """
    waiting = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_hung_up(http))
    try:
        await asyncio.wait((waiting, gone), return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise ApiError("the client has hung up", status=GONE)
        return await waiting
    finally:
        # Both end here, whichever was first; `gather` waits until they have
        for task in (waiting, gone):
            task.cancel()
        await asyncio.gather(waiting, gone, return_exceptions=True)


async def _hung_up(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


def failure(error: Exception) -> ApiError:
    """What is said of an error of the worker."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Stopping):
        return ApiError("the server is stopping: ask another", status=503, retry_after=5)
    if out_of_memory(error) is not None:
        log.error("out of memory", exc_info=error)
        return ApiError("the server is out of memory: ask for fewer images", status=503, retry_after=5)
    if isinstance(error, ValueError):
        return ApiError(str(error))
    log.error("the worker failed", exc_info=error)
    return ApiError("the server failed at this request; its log says why", status=500)
