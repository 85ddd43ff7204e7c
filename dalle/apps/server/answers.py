"""Finished images as answers: files with metadata, JSON, server-sent events."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Sequence
from typing import Any

from PIL import Image

from dalle import __version__
from dalle.apps.server.bodies import ImagesBody
from dalle.apps.server.drawing import Order
from dalle.apps.server.errors import ApiError
from dalle.images.png import generation_texts, png_bytes
from dalle.pipelines.familiarity import warning
from dalle.pipelines.result import Result
from dalle.pipelines.text_to_image import TextToImage

# Or a proxy such as nginx would buffer events
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class Answers:
    """The answers to one request."""

    def __init__(self, pipe: TextToImage, body: ImagesBody, order: Order) -> None:
        self.pipe, self.body, self.order, self.size = pipe, body, order, order.size
        self.created = int(time.time())
        self.notes = list(order.notes)

    def tell(self, unfamiliar: Sequence[str]) -> None:
        """Add a note of the words that the model has hardly seen in training."""
        line = warning(unfamiliar)
        if line is not None and line not in self.notes:
            self.notes.append(line)

    def encoded(self, image: Image.Image, seed: int) -> str:
        """The file of an image in base64; a PNG has its prompt, seed and options as metadata."""
        whole = image if image.size == self.size else image.resize(self.size, Image.Resampling.LANCZOS)
        if self.body.output_format == "png":
            prompt, options = self.order.request.prompt, self.order.options
            texts = generation_texts(prompt, seed, options, self.pipe.model_hash, f"dalle {__version__}")
            data = png_bytes(whole, texts)
        else:
            buffer = io.BytesIO()
            whole.save(buffer, self.body.output_format.upper(), quality=self.body.output_compression)
            data = buffer.getvalue()
        return base64.b64encode(data).decode()

    def whole(self, result: Result) -> dict[str, Any]:
        """The JSON of all images."""
        images = []
        for number, (image, seed) in enumerate(zip(result.images, result.seeds, strict=True)):
            file = self.encoded(image, seed)
            url = f"data:image/{self.body.output_format};base64,{file}"
            own = {"url": url} if self.body.response_format == "url" else {"b64_json": file}
            images.append({**own, "seed": seed, **result.scores_of(number)})
        return {
            **self._common(),
            "data": images,
            "usage": self._usage(),
            "options": self.order.options,
            **self._notes(),
        }

    def partial(self, kind: str, image: Image.Image, number: int, candidate: int, share: float) -> str:
        """The event of a preview; `candidate` of the request, from 0."""
        seed = self.order.request.seeds[candidate]
        own = {"candidate_index": candidate, "seed": seed, "progress": round(share, 4)}
        content = {"b64_json": self.encoded(image, seed), "partial_image_index": number, **own, **self._event()}
        return event(f"{kind}.partial_image", content)

    def completed(self, kind: str, result: Result, number: int) -> str:
        """The event of a finished image."""
        seed = result.seeds[number]
        own = {"candidate_index": self.order.request.seeds.index(seed), "seed": seed, **result.scores_of(number)}
        file = self.encoded(result.images[number], seed)
        content = {"b64_json": file, "usage": self._usage(), **own, "options": self.order.options, **self._notes()}
        return event(f"{kind}.completed", {**content, **self._event()})

    def _common(self) -> dict[str, Any]:
        size = f"{self.size[0]}x{self.size[1]}"
        plain = {"background": "opaque", "output_format": self.body.output_format, "quality": "auto", "size": size}
        return {"created": self.created, **plain}

    def _event(self) -> dict[str, Any]:
        common = self._common()
        common["created_at"] = common.pop("created")  # the name in OpenAI's events
        return common

    def _notes(self) -> dict[str, list[str]]:
        return {"notes": self.notes} if self.notes else {}

    def _usage(self) -> dict[str, Any]:
        """Text tokens read and image tokens generated, of all candidates."""
        request = self.order.request
        limit = self.pipe.model.config.text_length
        length = self.pipe.text_tokens(request.prompt)
        text = limit if length is None else min(length, limit)
        kept = 0 if request.init_image is None else int(request.init_image.known_mask.sum())
        rows, columns = self.pipe.grid_of(request.size)
        drawn = len(request.seeds) * (rows * columns - kept)
        details = {"text_tokens": text, "image_tokens": kept}
        return {
            "input_tokens": text + kept,
            "input_tokens_details": details,
            "output_tokens": drawn,
            "total_tokens": text + kept + drawn,
        }


def failed(error: ApiError) -> str:
    """The event of a stream that ends early."""
    return event("error", error.content())


def event(kind: str, content: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **content}, ensure_ascii=False)}\n\n"
