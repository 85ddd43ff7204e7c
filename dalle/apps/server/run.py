"""Runs uvicorn with an orderly stop: at SIGTERM running requests finish, new ones get 503."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import time
from types import FrameType
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI

from dalle.apps.server.address import check_address
from dalle.apps.server.app import create_app
from dalle.apps.server.connections import bounded_protocol
from dalle.apps.server.guard import read_tokens
from dalle.apps.server.memory import trimmer
from dalle.apps.server.settings import ServeConfig
from dalle.apps.server.worker import Worker
from dalle.device import pick_device
from dalle.kernels.dispatch import prepare
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
        ValueError: the model, the tokens or the index cannot be read; or the address is taken, or may not be listened
            on.
    """
    check_address(settings.host, settings.port)
    if settings.token_file is not None:
        read_tokens(settings.token_file)  # before the loading, which takes longer
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
    if pick_device(settings.device).type == "cpu":
        prepare()  # before it says that it is ready, not while the first client waits
    unclip = None if settings.unclip is None else UnCLIP.from_pretrained(settings.unclip, device=settings.device)
    server(create_app(pipe, settings, unclip), settings).run()


def server(app: FastAPI, settings: ServeConfig) -> GracefulServer:
    """uvicorn with our limits, for an application of `create_app`."""
    # Anybody can cause warnings of wrong forms, and uvicorn's of wrong HTTP: a line of JSON for each request is enough
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=bounded_protocol(settings),
        ws="none",
        log_config=None,
        log_level="error",
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

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say where: with port 0 it is only known now."""
        if sockets is None:  # another program may have come first while the model was loaded
            check_address(self.config.host, self.config.port)
        await super().startup(sockets)
        for one in [one for listener in self.servers for one in listener.sockets] if self.started else []:
            host, port = one.getsockname()[:2]
            where = f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
            log.info("page: %s, API: %sv1; Ctrl-C or SIGTERM stops it in order", where, where)

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
