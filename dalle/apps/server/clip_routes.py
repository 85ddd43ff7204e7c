"""/v1/search, /v1/classify, /v1/embeddings: calls of CLIP, run between two steps of a batch."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fastapi import APIRouter
from PIL import Image
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from dalle.apps.embed import embed_images
from dalle.apps.search import Hit, ImageIndex
from dalle.apps.server import inputs
from dalle.apps.server.bodies import Body, ClassifyBody, EmbeddingBody, SearchBody, several
from dalle.apps.server.drawing import Drawing
from dalle.apps.server.errors import ApiError
from dalle.apps.server.images import check_model
from dalle.apps.server.schema import json_schema
from dalle.apps.zeroshot import Prediction, ZeroShotClassifier
from dalle.apps.zeroshot.calibration import Calibration
from dalle.apps.zeroshot.classifier import DOUBTFUL
from dalle.data.custom.records import as_record
from dalle.evaluation.templates import templates_of
from dalle.evaluation.zero_shot import embed_texts
from dalle.images.read import decode_image
from dalle.images.transforms import resize, to_rgb
from dalle.models.clip import CLIP

_THUMBNAIL = 192  # pixels
_SENTENCES = 10_000  # that one request may have embedded: a thousand labels in the ten templates of images-en


@dataclass(frozen=True)
class ZeroShot:
    """How /v1/classify classifies with the server's CLIP.

    Attributes:
        templates: the set of sentences for labels, where a request names none.
        calibration: of the probability of none; None: uncalibrated.
        doubts: whether to say that perhaps no label fits, for a CLIP of which that was measured.
    """

    templates: str
    calibration: Calibration | None = None
    doubts: bool = False


class ClipRoutes:
    """The endpoints, for one CLIP and perhaps an index of images."""

    def __init__(self, drawing: Drawing, name: str, index: ImageIndex | None, zero_shot: ZeroShot) -> None:
        """Prepare them.

        Args:
            drawing: runs computations in the worker's thread.
            name: id of the model.
            index: the images to search.
            zero_shot: how images are classified.
        """
        self.drawing, self.name, self.index, self.zero_shot = drawing, name, index, zero_shot
        self.settings = drawing.settings

    def router(self) -> APIRouter:
        """Their routes."""
        router = APIRouter(prefix="/v1", tags=["clip"])
        endpoints: tuple[tuple[str, Callable[[Request], Any], type[Body]], ...] = (
            ("/search", self.search, SearchBody),
            ("/classify", self.classify, ClassifyBody),
            ("/embeddings", self.embed, EmbeddingBody),
        )
        for path, endpoint, body in endpoints:
            extra = json_schema(body)
            router.add_api_route(path, endpoint, methods=["POST"], openapi_extra=extra, response_model=None)
        router.add_api_route("/search/images/{number}", self.thumbnail, methods=["GET"], response_model=None)
        return router

    async def search(self, request: Request) -> JSONResponse:
        """The images of the index that are nearest to texts and images."""
        body = await inputs.read_json(request, SearchBody)
        check_model(body, self.name)
        index = self._index()
        self._check_texts([*several(body.text), *several(body.minus)], "text")

        def found(images: Sequence[Image.Image], minus: Sequence[Image.Image]) -> list[Hit]:
            return index.search(
                several(body.text),
                images,
                minus=several(body.minus),
                minus_image=minus,
                top=body.top,
                where=several(body.where),
                min_score=body.min_score,
                distinct=body.distinct,
            )

        async with self.drawing.holding:
            images = await self.drawing.decoded(several(body.image), "image")
            minus = await self.drawing.decoded(several(body.minus_image), "minus_image")
            hits = await self.drawing.compute(lambda: found(images, minus))
        return JSONResponse({"object": "list", "data": [vars(hit) for hit in hits], "images": len(index)})

    async def thumbnail(self, number: int) -> Response:
        """An image of the index, small, by its number."""
        index = self._index()
        if not 0 <= number < len(index):
            raise ApiError(f"there is no image {number}: the index has {len(index)}", "number", status=404)

        def read() -> bytes:
            try:
                image = to_rgb(decode_image(index.read(index.hit(number))))
            except ValueError as error:  # its file has changed, or is gone
                message = f"image {number} cannot be read any more: {error}"
                raise ApiError(message, "number", status=404) from None
            side = max(image.size)
            scale = min(1.0, _THUMBNAIL / side)
            width, height = (max(1, round(edge * scale)) for edge in image.size)
            buffer = io.BytesIO()
            resize(image, width, height, (0, 0, *image.size)).save(buffer, "JPEG", quality=85)
            return buffer.getvalue()

        content = await self.drawing.compute(read)
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    async def classify(self, request: Request) -> JSONResponse:
        """Classify images zero-shot, by labels."""
        body = await inputs.read_json(request, ClassifyBody)
        check_model(body, self.name)
        clip = self._clip()
        if not body.image:
            raise ApiError("image is empty: give one at least", "image")
        templates = self.zero_shot.templates if body.templates is None else body.templates
        self._check_labels(body.labels, templates)

        def classified(images: Sequence[Image.Image]) -> list[Prediction]:
            with torch.inference_mode():
                classify = ZeroShotClassifier(clip, body.labels, templates, self.zero_shot.calibration)
                return classify(images, body.top, threshold=body.threshold, with_none=self.zero_shot.doubts)

        async with self.drawing.holding:
            images = await self.drawing.decoded(several(body.image), "image")
            results = await self.drawing.compute(lambda: classified(images))
        data = []
        for number, result in enumerate(results):
            pairs = zip(result.labels, result.probabilities, strict=True)
            labels = [{"label": label, "probability": value} for label, value in pairs]
            none: dict[str, Any] = {} if result.none is None else {"none": result.none}
            if result.none is not None and self.zero_shot.doubts and body.threshold is None:
                none["doubtful"] = result.none > DOUBTFUL
            data.append({"index": number, "labels": labels, **none})
        return JSONResponse({"object": "list", "data": data, "model": self.name})

    async def embed(self, request: Request) -> JSONResponse:
        """CLIP's unit vectors of texts and images."""
        body = await inputs.read_json(request, EmbeddingBody)
        check_model(body, self.name)
        clip = self._clip()
        width = clip.config.embed_dim
        if body.dimensions not in (None, width):
            raise ApiError(f"dimensions is {body.dimensions}: this CLIP's vectors have {width}", "dimensions")
        given = several(body.input)
        places = [i for i, one in enumerate(given) if one.startswith("data:")]
        texts = {i: one for i, one in enumerate(given) if i not in places}
        self._check_texts(list(texts.values()), "input")

        def embedded(images: Sequence[Image.Image]) -> dict[int, list[float]]:
            vectors = dict(zip(texts, embed_texts(clip, list(texts.values())).tolist(), strict=True))
            records = [as_record(image) for image in images]
            rows = [row for batch in embed_images(clip, records) for row in batch.vectors.tolist()]
            return vectors | dict(zip(places, rows, strict=True))

        async with self.drawing.holding:
            images = await self.drawing.decoded([given[i] for i in places], "input")
            found = await self.drawing.compute(lambda: embedded(images))
        data = [
            {"object": "embedding", "index": i, "embedding": _encoded(found[i], body.encoding_format)}
            for i in range(len(given))
        ]
        return JSONResponse({"object": "list", "data": data, "model": self.name, "usage": _usage(texts.values())})

    def _index(self) -> ImageIndex:
        if self.index is None:
            raise ApiError("this server has no index of images: start it with --index FOLDER", status=404)
        return self.index

    def _clip(self) -> CLIP:
        if self.drawing.pipe.clip is None:
            raise ApiError("this server has no CLIP: start it with --clip", status=404)
        return self.drawing.pipe.clip

    def _check_labels(self, labels: list[str] | dict[str, list[str]], templates: str | list[str]) -> None:
        """Refuse sentences that are too long, or too many: all are embedded between two steps of drawing."""
        words = labels if isinstance(labels, list) else [word for own in labels.values() for word in own]
        self._check_texts([*labels, *words], "labels")
        self._check_texts(several(templates), "templates")
        try:
            count = len(words) * len(templates_of(templates))
        except ValueError as error:
            raise ApiError(str(error), "templates") from None
        if count > _SENTENCES:
            message = f"the labels and templates are {count:,} sentences: at most {_SENTENCES:,} are read at a time"
            raise ApiError(message, "labels")

    def _check_texts(self, texts: Sequence[str], param: str) -> None:
        longest = max(map(len, texts), default=0)
        if longest > self.settings.max_prompt:
            raise ApiError(f"{param} has {longest:,} characters: at most {self.settings.max_prompt:,} are read", param)


def _encoded(vector: list[float], form: str) -> list[float] | str:
    """As numbers, or in base64 as little-endian float32, which OpenAI's client asks for."""
    if form == "float":
        return vector
    return base64.b64encode(torch.tensor(vector, dtype=torch.float32).numpy().astype("<f4").tobytes()).decode()


def _usage(texts: Any) -> dict[str, int]:
    words = sum(len(text.split()) for text in texts)
    return {"prompt_tokens": words, "total_tokens": words}
