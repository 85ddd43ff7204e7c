"""The application: routes, guard and worker around one pipeline."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, PlainTextResponse

from dalle import __version__
from dalle.apps.embed import fingerprint
from dalle.apps.search import ImageIndex
from dalle.apps.server.clip_routes import ClipRoutes, ZeroShot
from dalle.apps.server.drawing import Drawing
from dalle.apps.server.errors import ApiError, add_handlers
from dalle.apps.server.guard import Guard, read_tokens
from dalle.apps.server.images import ImageRoutes
from dalle.apps.server.page import page_router
from dalle.apps.server.paint_routes import PaintRoutes
from dalle.apps.server.queue import FairQueue
from dalle.apps.server.settings import ServeConfig
from dalle.apps.server.tasks import LongWork
from dalle.apps.server.unclip_routes import UnCLIPRoutes
from dalle.apps.server.worker import Worker
from dalle.apps.zeroshot.calibration import calibration_beside
from dalle.checkpoints.folder_config import read_config
from dalle.checkpoints.hub import SHIPPED
from dalle.checkpoints.source import is_model_folder
from dalle.files import expand_home
from dalle.models.clip import CLIP
from dalle.pipelines.text_to_image import TextToImage
from dalle.pipelines.unclip import UnCLIP

_CARD = "README.md"


def create_app(pipe: TextToImage, settings: ServeConfig, unclip: UnCLIP | None = None) -> FastAPI:
    """Make the application that serves a pipeline; it alone may use the pipeline from now on.

    `app.state.worker` is its worker, which begins and ends with the application.

    Args:
        pipe: the pipeline.
        settings: limits, tokens and the index; address and model have been used by then.
        unclip: for variations and blends, or None.

    Raises:
        ValueError: tokens, the index or the calibration of the CLIP cannot be read.
    """
    tokens = [] if settings.token_file is None else read_tokens(settings.token_file)
    zero_shot = _zero_shot(settings, pipe.clip)
    index = None if settings.index is None else _open_index(settings.index, pipe, settings.clip is not None)
    worker = Worker(pipe, FairQueue(settings.max_waiting, settings.max_per_client), settings.max_batch, settings.window)

    @asynccontextmanager
    async def life(_app: FastAPI) -> AsyncIterator[None]:
        # They name prompts that are cut, and say of images what their client is told
        quiet = [logging.getLogger("dalle.images.transforms")]
        quiet += [] if settings.log_prompts else [logging.getLogger("dalle.pipelines.prompts")]
        levels = [logger.level for logger in quiet]
        for logger in quiet:
            logger.setLevel(logging.ERROR)
        worker.start()
        yield
        worker.stop()
        for logger, level in zip(quiet, levels, strict=True):
            logger.setLevel(level)

    app = FastAPI(
        title="dalle",
        version=__version__,
        lifespan=life,
        redoc_url=None,
        docs_url=None,
        openapi_tags=[{"name": "images"}, {"name": "clip"}, {"name": "server"}],
    )
    app.state.worker = worker
    add_handlers(app)
    if settings.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )
    # Added last, so outermost: nothing runs before its checks
    app.add_middleware(Guard, settings=settings, tokens=tokens, metrics=worker.metrics)
    name = model_name(settings.model)
    drawing = Drawing(pipe, worker, settings)
    app.include_router(page_router())
    app.include_router(ImageRoutes(drawing, name).router())
    app.include_router(ClipRoutes(drawing, name, index, zero_shot).router())
    work, paints = LongWork(drawing), settings.paint and pipe.clip is not None
    if paints:
        app.include_router(PaintRoutes(work, name).router())
    if unclip is not None:
        app.include_router(UnCLIPRoutes(work, unclip, name).router())
    there = {"index": None if index is None else len(index), "paint": paints, "unclip": unclip is not None}
    _add_models(app, pipe, settings, name, there)
    _add_health(app, worker)
    return app


def _open_index(folder: Path, pipe: TextToImage, given: bool) -> ImageIndex:
    """An index with the CLIP that made it: that of the pipeline where it is the one, else where the index says.

    Raises:
        ValueError: it cannot be read, or was made with another CLIP than the one that is given, or found.
    """
    index = ImageIndex(folder)
    # One CLIP in memory instead of two where they are the same weights
    own = pipe.clip is not None and fingerprint(pipe.clip) == index.manifest.clip_hash
    index = ImageIndex(folder, pipe.clip) if own or given else index
    index.clip  # noqa: B018, loaded and compared now, not at the first request
    return index


def _zero_shot(settings: ServeConfig, clip: CLIP | None) -> ZeroShot:
    """How images are classified, with the calibration in the CLIP's folder if there is one, as by `dalle classify`."""
    if clip is None:
        return ZeroShot("images-en")
    if settings.clip is not None:
        return ZeroShot("images-en", calibration_beside(settings.clip, clip))
    folder = expand_home(SHIPPED if settings.model is None else settings.model)
    # A folder of published files says nothing of a CLIP
    part = (read_config(folder).get("parts") or {}).get("clip") if is_model_folder(folder) else None
    calibration = None if part is None else calibration_beside(folder / part["path"], clip)
    if settings.model is None:  # the built-in CLIP has only seen captions of emoji
        return ZeroShot("emoji-en", calibration, doubts=not clip.config.sigmoid)
    return ZeroShot("images-en", calibration)


def model_name(source: str | None) -> str:
    """The id of a model: the name of its folder or file."""
    return Path(SHIPPED if source is None else source).name


def _add_models(app: FastAPI, pipe: TextToImage, settings: ServeConfig, name: str, there: dict[str, Any]) -> None:
    created = int(time.time())
    folder = SHIPPED if settings.model is None else Path(settings.model)
    card = folder / _CARD
    text = card.read_text("utf-8", "replace") if card.is_file() else None
    entry: dict[str, Any] = {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "dalle",
        "sha256": pipe.model_hash,
        "image_size": pipe.image_size,
        "grid": list(pipe.grid),
        "sizes": pipe.model.config.grids is not None,
        "text_length": pipe.model.config.text_length,
        "sampling": {field: getattr(pipe.sampling, field) for field in pipe.sampling.__dataclass_fields__},
        "clip": pipe.clip is not None,
        "negative": pipe.takes_negative,
        **there,
        "card": text,
        "limits": {
            "n": settings.max_n,
            "candidates": settings.max_candidates,
            "prompt": settings.max_prompt,
            "steps": settings.max_steps,
        },
    }

    @app.get("/v1/models", tags=["server"])
    async def models() -> JSONResponse:
        """The model that the server has loaded."""
        return JSONResponse({"object": "list", "data": [entry]})

    @app.get("/v1/models/{model}", tags=["server"])
    async def model(model: str) -> JSONResponse:
        """A model by its id."""
        if model != name:
            raise ApiError(
                f"there is no model {model!r} here, but {name!r}", "model", status=404, code="model_not_found"
            )
        return JSONResponse(entry)


def _add_health(app: FastAPI, worker: Worker) -> None:
    @app.get("/healthz", tags=["server"])
    async def healthz() -> JSONResponse:
        """Liveness: 200, else 503 and the server should be restarted."""
        return JSONResponse({"alive": worker.alive}, 200 if worker.alive else 503)

    @app.get("/readyz", tags=["server"])
    async def readyz() -> JSONResponse:
        """Readiness: 200 if the server accepts requests, else 503."""
        ready = worker.alive and not worker.draining
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    @app.get("/metrics", tags=["server"])
    async def metrics() -> PlainTextResponse:
        """Metrics in Prometheus' text format."""
        return PlainTextResponse(worker.metrics.text(), media_type="text/plain; version=0.0.4")
