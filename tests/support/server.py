"""A server of a tiny model in a thread, on a free port."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI
from PIL import Image

import dalle
from dalle.apps.search import ImageIndex
from dalle.apps.server.app import create_app
from dalle.apps.server.run import GracefulServer, server
from dalle.apps.server.settings import ServeConfig
from dalle.apps.server.worker import Worker
from dalle.generation.rolling import RollingBatch
from dalle.pipelines.text_to_image import TextToImage
from dalle.pipelines.unclip import UnCLIP
from support.tiny_unclip import make_tiny_unclip


@dataclass
class Running:
    url: str
    worker: Worker
    server: GracefulServer
    thread: threading.Thread

    def openai(self, token: str = "none") -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=token, max_retries=0, timeout=60)

    def http(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, **options)

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", int(self.url.rpartition(":")[2])


class Pause:
    """Holds a rolling batch once, before a step at which one of its images has so many tokens.

    Attributes:
        reached: set when it is held.
        go: to be set for it to go on.
        seen: the tokens that the images of the batch have before each step.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, token: int) -> None:
        self.reached, self.go = threading.Event(), threading.Event()
        self.seen: list[list[int]] = []
        step = RollingBatch.step

        def held(batch: RollingBatch) -> None:
            self.seen.append([one.done for one in batch.active])
            if token in self.seen[-1] and not self.reached.is_set():
                self.reached.set()
                assert self.go.wait(120)
            step(batch)

        monkeypatch.setattr(RollingBatch, "step", held)


def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition of the server's threads holds, at most a minute."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@contextmanager
def running_whole(
    folder: Path, pipe: TextToImage, root: Path, photos: Sequence[Image.Image], **settings: Any
) -> Iterator[Running]:
    """As `running`, with all there is: an index of photos, which are written to `root`, the CLIP, an unCLIP."""
    (root / "photos").mkdir()
    for number, photo in enumerate(photos):
        photo.save(root / "photos" / f"{number}.png")
    ImageIndex.build(root / "photos.index", root / "photos", clip=dalle.load_clip(folder.parent / "clip"))
    unclip = UnCLIP.from_pretrained(make_tiny_unclip(root / "two"), device="cpu")
    with running(folder, pipe, unclip, index=root / "photos.index", **settings) as one:
        yield one


@contextmanager
def running(
    folder: Path, pipe: TextToImage | None = None, unclip: UnCLIP | None = None, **settings: Any
) -> Iterator[Running]:
    """Serve the model of `folder`, until the block ends."""
    pipe = TextToImage.from_pretrained(folder, device="cpu") if pipe is None else pipe
    config = ServeConfig(model=str(folder), **settings)
    app = create_app(pipe, config, unclip)
    own = server(app, config)
    # As the command listens: asyncio sends answers at once (TCP_NODELAY) only on sockets that name their protocol.
    # Others hold back what follows the head of an answer until the client has acknowledged it, 40 ms later
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        thread = threading.Thread(target=own.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield Running(f"http://127.0.0.1:{port}", app.state.worker, own, thread)
        finally:
            own.should_exit = True
            thread.join(30)
            assert not thread.is_alive()
