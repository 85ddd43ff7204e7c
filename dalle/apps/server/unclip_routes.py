"""/v1/vary and /v1/blend: images changed through their embeddings by an unCLIP (DALL-E 2), between batches."""

from __future__ import annotations

import base64
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fastapi import APIRouter
from PIL import Image
from starlette.requests import Request
from starlette.responses import Response
from torch import nn

from dalle import __version__
from dalle.apps.server import inputs
from dalle.apps.server.bodies import BlendBody, VaryBody
from dalle.apps.server.errors import ApiError
from dalle.apps.server.images import check_model
from dalle.apps.server.schema import json_schema
from dalle.apps.server.tasks import LongWork
from dalle.files import url_of
from dalle.images.png import generation_texts, png_bytes
from dalle.images.transforms import crop_note
from dalle.pipelines.unclip import UnCLIP


class UnCLIPRoutes:
    """The endpoints, for one unCLIP."""

    def __init__(self, work: LongWork, pipe: UnCLIP, name: str) -> None:
        self.work, self.pipe, self.name = work, pipe, name
        self.settings = work.drawing.settings

    def router(self) -> APIRouter:
        """Their routes."""
        router = APIRouter(prefix="/v1", tags=["images"])
        for path, endpoint, body in (("/vary", self.vary, VaryBody), ("/blend", self.blend, BlendBody)):
            extra = json_schema(body)
            router.add_api_route(path, endpoint, methods=["POST"], openapi_extra=extra, response_model=None)
        return router

    async def vary(self, request: Request) -> Response:
        """Generate variations of an image."""
        body = await inputs.read_json(request, VaryBody)
        check_model(body, self.name)
        self._check("n", body.n, body.steps)
        async with self.work.drawing.holding:
            (image,) = await self.work.drawing.decoded([body.image], "image")
        options = {"eta": body.eta, "steps": body.steps}
        return await self._answer(
            request,
            lambda: self.pipe.vary(image, body.n, body.eta, body.seed, body.steps),
            [body.seed + number for number in range(body.n)],
            options,
            "vary",
            _notes([image]),
        )

    async def blend(self, request: Request) -> Response:
        """Interpolate between images and texts, or blend them into one."""
        body = await inputs.read_json(request, BlendBody)
        check_model(body, self.name)
        self._check("frames", body.frames if body.weights is None else 1, body.steps)
        longest = max((len(one) for one in body.items if not one.startswith("data:")), default=0)
        if longest > self.settings.max_prompt:
            raise ApiError(f"items has a text of {longest:,} characters: at most {self.settings.max_prompt:,}", "items")
        url = next((one for one in body.items if url_of(one) is not None), None)
        if url is not None:
            raise ApiError(
                f"{url:.200} in items is a URL, which is not fetched: give the image as a data: URL", "items"
            )
        urls = [one for one in body.items if one.startswith("data:")]
        async with self.work.drawing.holding:
            images = await self.work.drawing.decoded(urls, "items")
        left = iter(images)
        items = [next(left) if one.startswith("data:") else one for one in body.items]
        options = {"weights": body.weights, "frames": body.frames, "steps": body.steps}
        return await self._answer(
            request,
            lambda: self.pipe.blend(items, body.weights, body.frames, body.seed, body.steps),
            [body.seed],
            options,
            "blend",
            _notes(images),
        )

    async def _answer(
        self,
        request: Request,
        make: Callable[[], Sequence[Image.Image]],
        seeds: Sequence[int],
        options: dict[str, Any],
        kind: str,
        notes: dict[str, list[str]],
    ) -> Response:
        def work(step: Callable[[], None], _report: Callable[[Any], None]) -> Any:
            step()
            with _between_passes(self.pipe, step):
                images = make()
            own = [seeds[min(number, len(seeds) - 1)] for number in range(len(images))]  # frames of a blend share one
            data = [self._file(image, seed, options) for image, seed in zip(images, own, strict=True)]
            return {"created": int(time.time()), "data": data, "options": options, **notes}

        return await self.work.answer(request, work, False, kind)

    def _file(self, image: Image.Image, seed: int, options: dict[str, Any]) -> dict[str, Any]:
        texts = generation_texts("", seed, options, self.pipe.model_hash, f"dalle {__version__}")
        return {"b64_json": base64.b64encode(png_bytes(image, texts)).decode(), "seed": seed}

    def _check(self, name: str, images: int, steps: int) -> None:
        if images > self.settings.max_n:
            raise ApiError(f"{name} is {images}: at most {self.settings.max_n} images at a time", name)
        if steps > self.settings.max_steps:
            raise ApiError(f"steps is {steps}: at most {self.settings.max_steps}", "steps")


def _notes(images: Sequence[Image.Image]) -> dict[str, list[str]]:
    """What the client should know of its images, which are made square."""
    notes = [note for image in images if (note := crop_note(image, 1, 1)) is not None]
    return {"notes": notes} if notes else {}


@contextlib.contextmanager
def _between_passes(pipe: UnCLIP, step: Callable[[], None]) -> Iterator[None]:
    """Call `step` before each pass of one of the networks, of which a diffusion has hundreds."""
    networks: list[nn.Module] = [pipe.decoder, *(one for one in (pipe.upsampler,) if one is not None)]
    hooks = [network.register_forward_pre_hook(lambda *_: step()) for network in networks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
