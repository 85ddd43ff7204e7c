"""/v1/images: generations, edits and variations, as OpenAI's clients ask for them."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from dalle.apps.server import answers, inputs
from dalle.apps.server.bodies import Body, EditBody, GenerationBody, ImagesBody, VariationBody
from dalle.apps.server.drawing import Drawing, Order, unless_gone
from dalle.apps.server.errors import ApiError
from dalle.apps.server.events import Drawn, Preview
from dalle.apps.server.schema import form_schema, json_schema
from dalle.images.transforms import crop_note
from dalle.pipelines.init_image import InitImage
from dalle.pipelines.result import Result

# Codes that it draws look at the text and at codes of the same image: there is no place for another image to be read
_ONE_IMAGE = "this model draws on in one image and cannot take anything from others (/v1/blend can, with an unCLIP)"


@dataclass(frozen=True)
class _Source:
    """An image of a client's of which a part is kept."""

    start: InitImage
    used: dict[str, Any]  # what metadata says of it
    notes: list[str]  # what its client should know


class ImageRoutes:
    """The endpoints, for one model."""

    def __init__(self, drawing: Drawing, name: str) -> None:
        self.drawing, self.name = drawing, name
        self.pipe, self.settings = drawing.pipe, drawing.settings

    def router(self) -> APIRouter:
        """Their routes."""
        router = APIRouter(prefix="/v1/images", tags=["images"])
        for path, endpoint, schema in (
            ("/generations", self.generate, json_schema(GenerationBody)),
            ("/edits", self.edit, form_schema(EditBody, "image", "mask")),
            ("/variations", self.vary, form_schema(VariationBody, "image")),
        ):
            router.add_api_route(path, endpoint, methods=["POST"], openapi_extra=schema, response_model=None)
        return router

    async def generate(self, request: Request) -> Response:
        """Generate images for a prompt."""
        body = await inputs.read_json(request, GenerationBody)
        check_model(body, self.name)
        order = self.drawing.order(body, body.prompt)
        return await self._answer(request, body, order, "image_generation")

    async def edit(self, request: Request) -> Response:
        """Inpaint an image where its mask (or the image itself) is transparent, or below its first rows."""
        form = await inputs.read_form(request)
        body = inputs.validated(EditBody, form.fields)
        check_model(body, self.name)
        self.drawing.order(body, body.prompt, keeps=True)  # refuses what is wrong before anything is computed
        async with self.drawing.holding:
            source = await self._edited(form, body)
        return await self._gone_on(request, body, body.prompt, source)

    async def _edited(self, form: inputs.Form, body: EditBody) -> _Source:
        """What an edit keeps of its image."""
        image, used = await run_in_threadpool(self._image, form, "image")
        mask: Image.Image | None = None
        if body.keep_rows is None:
            name, given = "image", image
            if "mask" in form.files:
                name = "mask"
                given, more = await run_in_threadpool(self._image, form, name)
                used |= more
            mask = await run_in_threadpool(inputs.transparent_mask, given, name)
            # Those of `dalle sample` are white there: the same file would say the opposite
            used["mask"] = used[name] | {"transparent": True}
        elif "mask" in form.files:
            raise ApiError("give either mask or keep_rows, to say which part of the image is kept", "keep_rows")
        return await self._source(image, body.keep_rows, mask, used)

    async def vary(self, request: Request) -> Response:
        """Generate variations of an image, whose first rows are kept."""
        form = await inputs.read_form(request)
        body = inputs.validated(VariationBody, form.fields)
        check_model(body, self.name)
        self.drawing.order(body, body.prompt, keeps=True)
        async with self.drawing.holding:
            image, used = await run_in_threadpool(self._image, form, "image")
            source = await self._source(image, body.keep_rows, None, used)
        return await self._gone_on(request, body, body.prompt, source)

    def _image(self, form: inputs.Form, name: str) -> tuple[Image.Image, dict[str, Any]]:
        """The one file of this name, and its entry for the metadata."""
        others = set(form.files) - {"image", "mask"}
        if others:
            raise ApiError(f"there is no file {min(others)}: image and mask are read", min(others))
        files = form.files.get(name, [])
        if not files:
            raise ApiError(f"{name} is missing: send it as a file of the form", name, code="missing_required_parameter")
        if len(files) > 1:
            why = _ONE_IMAGE if name == "image" else "give one"
            raise ApiError(f"{len(files)} files in {name}: {why}", name, code="too_many_images")
        facts = {"file": name, "sha256": hashlib.sha256(files[0]).hexdigest()}
        return inputs.read_image(files[0], name, self.settings.max_pixels), {name: facts}

    async def _source(
        self, image: Image.Image, keep_rows: float | None, mask: Image.Image | None, used: dict[str, Any]
    ) -> _Source:
        try:
            start = await self.drawing.compute(lambda: self.pipe.encode_init_image(image, keep_rows, mask))
        except ApiError as error:
            error.param = error.param or ("mask" if mask is not None else "keep_rows")
            raise
        assert start is not None  # there is an image
        note = crop_note(image, *self.pipe.size)
        return _Source(start, used | {"keep_rows": keep_rows}, [] if note is None else [note])

    async def _gone_on(self, request: Request, body: ImagesBody, prompt: str, source: _Source) -> Response:
        order = self.drawing.order(body, prompt, source.start, source.used)
        order.notes.extend(source.notes)
        return await self._answer(request, body, order, "image_edit")

    async def _answer(self, request: Request, body: ImagesBody, order: Order, kind: str) -> Response:
        said = answers.Answers(self.pipe, body, order)
        request.state.log = {"images": len(order.request.seeds), "user": body.user}
        if self.settings.log_prompts:
            request.state.log["prompt"] = order.request.prompt
        if not body.stream:
            result, unfamiliar = await self.drawing.results(request, order)
            said.tell(unfamiliar)
            return JSONResponse(await run_in_threadpool(said.whole, result))  # encoding takes time at large sizes
        events = self.drawing.draw(request, order)
        try:
            first = await unless_gone(request, _next(events))  # an error until here gets a status of its own
        except BaseException:  # also if the request is canceled
            await events.aclose()
            raise
        return StreamingResponse(
            self._stream(events, first, said, order, kind),
            media_type="text/event-stream",
            headers=answers.STREAM_HEADERS,
        )

    async def _stream(
        self,
        events: AsyncGenerator[Preview | Drawn],
        first: Preview | Drawn | None,
        said: answers.Answers,
        order: Order,
        kind: str,
    ) -> AsyncIterator[str]:
        """Events as they happen; images that CLIP must choose among come at the end."""
        drawn: dict[int, Result] = {}
        chosen = order.request.scored
        async with contextlib.aclosing(events):
            event = first
            while event is not None:
                if isinstance(event, Preview):
                    parts = (event.image, event.number, event.index, event.share)
                    yield await run_in_threadpool(said.partial, kind, *parts)
                elif chosen:
                    drawn[event.index] = event.result
                    said.tell(event.unfamiliar)
                else:
                    said.tell(event.unfamiliar)
                    yield await run_in_threadpool(said.completed, kind, event.result, 0)
                try:
                    event = await _next(events)
                except ApiError as error:
                    yield answers.failed(error)
                    return
        if chosen:
            best = Result.merged([drawn[index] for index in sorted(drawn)]).best(order.keep, distinct=True)
            for number in range(len(best.images)):
                yield await run_in_threadpool(said.completed, kind, best, number)


async def _next(events: AsyncGenerator[Preview | Drawn]) -> Preview | Drawn | None:
    return await anext(events, None)


def check_model(body: Body, name: str) -> None:
    """Refuse a model that is not the server's.

    Raises:
        ApiError: it is another.
    """
    if body.model not in (None, name):
        message = f"there is no model {body.model!r} here: leave it out, or say {name!r}"
        raise ApiError(message, "model", status=404, code="model_not_found")
