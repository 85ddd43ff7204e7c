"""/v1/paint: VQGAN+CLIP with the server's own image tokenizer and CLIP, step by step between batches."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter
from PIL import Image
from starlette.requests import Request
from starlette.responses import Response

from dalle import __version__
from dalle.apps.server import inputs
from dalle.apps.server.bodies import PaintBody
from dalle.apps.server.errors import ApiError
from dalle.apps.server.images import check_model
from dalle.apps.server.schema import json_schema
from dalle.apps.server.tasks import LongWork
from dalle.apps.vqgan_clip.api import make_painter
from dalle.apps.vqgan_clip.optimize import Painter
from dalle.apps.vqgan_clip.options import PaintOptions
from dalle.config import to_dict
from dalle.images.png import png_bytes
from dalle.images.transforms import to_image

_LARGEST = 2**18  # pixels of a painting: each step decodes and differentiates all of them


class PaintRoutes:
    """The endpoint, for one model with a CLIP."""

    def __init__(self, work: LongWork, name: str) -> None:
        self.work, self.name = work, name
        self.pipe, self.settings = work.drawing.pipe, work.drawing.settings

    def router(self) -> APIRouter:
        """Its route."""
        router = APIRouter(prefix="/v1", tags=["images"])
        extra = json_schema(PaintBody)
        router.add_api_route("/paint", self.paint, methods=["POST"], openapi_extra=extra, response_model=None)
        return router

    async def paint(self, request: Request) -> Response:
        """Paint a prompt: an image is changed step by step until CLIP finds the prompt in it."""
        body = await inputs.read_json(request, PaintBody)
        check_model(body, self.name)
        if len(body.prompt) > self.settings.max_prompt:
            message = f"prompt has {len(body.prompt):,} characters: at most {self.settings.max_prompt:,} are read"
            raise ApiError(message, "prompt", code="string_above_max_length")
        options = _options(body, self.settings.max_steps)
        init = None
        if body.image is not None:
            async with self.work.drawing.holding:
                (init,) = await self.work.drawing.decoded([body.image], "image")
        request.state.log = {"steps": options.num_steps, "user": body.user}
        if self.settings.log_prompts:
            request.state.log["prompt"] = body.prompt

        def work(step: Callable[[], None], report: Callable[[Any], None]) -> Any:
            step()
            painter, losses = self._painter(options, init), dict[str, float]()
            for losses in painter.run():
                if body.stream and painter.step % body.preview_every == 0 and painter.step < options.num_steps:
                    report(self._event(painter, options, losses))
                step()
            return self._event(painter, options, losses)

        return await self.work.answer(request, work, body.stream, "paint")

    def _painter(self, options: PaintOptions, init: Image.Image | None) -> Painter:
        """A painting with the server's models, which lose their gradients for it: nothing here trains them.

        Raises:
            ApiError: an option does not go with the models.
        """
        assert self.pipe.clip is not None
        tokenizer, clip = self.pipe.image_tokenizer.requires_grad_(False), self.pipe.clip.requires_grad_(False)
        try:
            return make_painter(options, tokenizer, [clip], init)
        except ValueError as error:
            raise _refused(error) from None

    def _event(self, painter: Painter, options: PaintOptions, losses: dict[str, float]) -> dict[str, Any]:
        """The JSON of a painting as far as it is."""
        given = to_dict(options)
        image = to_image(painter.image())
        texts = {
            "prompt": options.prompt,
            "seed": str(options.seed),
            "options": json.dumps(given, ensure_ascii=False),
            "models": json.dumps(painter.models),
            "step": str(painter.step),
            "Software": f"dalle {__version__}",
        }
        file = base64.b64encode(png_bytes(image, texts)).decode()
        return {
            "created": int(time.time()),
            "b64_json": file,
            "size": f"{image.width}x{image.height}",
            "step": painter.step,
            "steps": options.num_steps,
            "progress": round(painter.step / options.num_steps, 4),
            "losses": {name: round(value, 6) for name, value in losses.items()},
            "seed": options.seed,
        }


def _options(body: PaintBody, max_steps: int) -> PaintOptions:
    """Options of a painting.

    Raises:
        ApiError: one is out of range.
    """
    try:
        options = PaintOptions(**body.options())
    except ValueError as error:
        raise _refused(error) from None
    if options.num_steps > max_steps:
        raise ApiError(f"steps is {options.num_steps}: at most {max_steps}", "steps")
    width, height = options.resolution or (0, 0)
    if width * height > _LARGEST:
        raise ApiError(f"size is {options.size}: at most {_LARGEST:,} pixels are painted", "size")
    return options


def _refused(error: ValueError) -> ApiError:
    """An error of the painting's options, which begins with the name of one."""
    words = str(error).removeprefix("the ").split(" ", 1)
    return ApiError(str(error), words[0] if words[0] in PaintBody.model_fields else None)
