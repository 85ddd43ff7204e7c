"""Runs uvicorn with bounded connections and an orderly stop: at SIGTERM running requests finish, new ones get 503."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from types import FrameType
from typing import Any, cast

import torch
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from dalle.apps.server.app import create_app
from dalle.apps.server.guard import SLOWEST, read_tokens
from dalle.apps.server.memory import trimmer
from dalle.apps.server.settings import ServeConfig
from dalle.apps.server.worker import Worker
from dalle.pipelines.text_to_image import TextToImage
from dalle.pipelines.unclip import UnCLIP

log = logging.getLogger("dalle.server")

_TRIM_TICKS = 300  # half a minute


def serve(settings: ServeConfig, given: dict[str, Any] | None = None) -> None:
    """Load the model and serve until SIGTERM or Ctrl-C.

    Args:
        settings: all of it.
        given: facts that a published file does not record, as for `dalle.load_model`.

    Raises:
        ValueError: the model, the tokens or the index cannot be read.
        OSError: the address is taken, or may not be listened on.
    """
    if settings.token_file is not None:
        read_tokens(settings.token_file)  # before the loading, which takes longer
    if not settings.log_prompts:
        logging.getLogger("dalle.pipelines.prompts").setLevel(logging.ERROR)  # it names prompts that are cut
    pipe = TextToImage.from_pretrained(
        settings.model,
        settings.device,
        getattr(torch, settings.dtype),
        clip=settings.clip,
        image_tokenizer=settings.image_tokenizer,
        text_tokenizer=settings.text_tokenizer,
        text_encoder=settings.text_encoder,
        **(given or {}),
    )
    unclip = None if settings.unclip is None else UnCLIP.from_pretrained(settings.unclip, device=settings.device)
    log.info("http://%s:%d/v1 serves; Ctrl-C or SIGTERM stops it in order", settings.host, settings.port)
    server(create_app(pipe, settings, unclip), settings).run()


def server(app: FastAPI, settings: ServeConfig) -> GracefulServer:
    """uvicorn with our limits, for an application of `create_app`."""
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=_protocol(settings),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=5,
        backlog=min(settings.max_connections, 2048),
    )
    return GracefulServer(config, app.state.worker, settings.stop_timeout)


class GracefulServer(uvicorn.Server):
    """Accepts requests while draining, to refuse them with 503; ends when the last running one is done."""

    def __init__(self, config: uvicorn.Config, worker: Worker, patience: float) -> None:
        super().__init__(config)
        self.worker, self.patience = worker, patience
        self.until: float | None = None
        self.trim = trimmer()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; the second signal ends at once."""
        if self.until is not None:
            super().handle_exit(sig, frame)
            return
        self.until = time.monotonic() + self.patience
        # Not worker.drain(), which takes a lock that the interrupted code may hold
        log.info("%s: finishing running requests", signal.Signals(sig).name)

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second."""
        if counter % _TRIM_TICKS == _TRIM_TICKS - 1:
            asyncio.get_running_loop().run_in_executor(None, self.trim)
        if self.until is not None:
            self.worker.drain()
            idle = not self.worker.busy and not self.server_state.tasks
            self.should_exit = self.should_exit or idle or time.monotonic() > self.until
        return await super().on_tick(counter)


def _protocol(settings: ServeConfig) -> type[asyncio.Protocol]:
    """HTTP over a bounded number of connections, each of which must send a request in time."""

    class BoundedProtocol(H11Protocol):
        resumed = 0  # times that the client has read what was too much to be sent at once

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > settings.max_connections:
                transport.abort()
                return
            self.loop.call_later(settings.header_timeout, self._silent, None)
            self.loop.call_later(settings.send_timeout, self._check_read, 0, 0)

        def data_received(self, data: bytes) -> None:
            idle, last = self.timeout_keep_alive_task is not None, self.cycle
            super().data_received(data)
            if idle:  # the first bytes of another request
                self.loop.call_later(settings.header_timeout, self._silent, last)

        def resume_writing(self) -> None:
            super().resume_writing()
            self.resumed += 1

        def _check_read(self, before: int, resumed: int) -> None:
            """End a connection whose client does not read what is left for it, which would stay in memory for ever."""
            if self not in self.connections:
                return
            left = self.transport.get_write_buffer_size()
            cycle = cast("RequestResponseCycle | None", self.cycle)  # None until there is a request
            idle = cycle is None or cycle.response_complete or self.transport.is_closing()
            added = not (idle or (self.flow.write_paused and resumed == self.resumed))  # perhaps, since the last look
            if before and not added and left > before - SLOWEST * settings.send_timeout:
                self.transport.abort()
            else:
                self.loop.call_later(settings.send_timeout, self._check_read, left, self.resumed)

        def _silent(self, last: object) -> None:
            """Nothing has come that is a request since the `last`: not a word, or a head that is sent slowly."""
            if self.cycle is last and self.timeout_keep_alive_task is None and not self.transport.is_closing():
                self.transport.close()

    return cast("type[asyncio.Protocol]", BoundedProtocol)
