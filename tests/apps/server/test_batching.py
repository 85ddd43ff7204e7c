"""Under load each image is the one it is alone; who hangs up leaves the batch; bounds hold; the stop is soft."""

from __future__ import annotations

import base64
import io
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from dalle.apps.server.queue import FairQueue, Job
from dalle.apps.server.worker import Worker
from dalle.generation.options import SamplingConfig
from dalle.generation.rolling import RollingBatch
from dalle.pipelines.request import Request
from dalle.pipelines.text_to_image import TextToImage
from support.server import Pause, Running, running, until


class Gate:
    """Holds the worker before its next batch, so that requests gather."""

    def __init__(self, served: Running) -> None:
        self.open, self.reached = threading.Event(), threading.Event()
        self.served = served

    def __enter__(self) -> Gate:
        self.served.worker.call(self._wait)
        assert self.reached.wait(30)
        return self

    def _wait(self) -> None:
        self.reached.set()
        assert self.open.wait(60)

    def __exit__(self, *_: object) -> None:
        self.open.set()


def pixels(answer: httpx.Response) -> list[bytes]:
    assert answer.status_code == 200, answer.text
    files = [base64.b64decode(one["b64_json"]) for one in answer.json()["data"]]
    return [Image.open(io.BytesIO(file)).convert("RGB").tobytes() for file in files]


BODIES: list[dict[str, Any]] = [
    {"prompt": "a red heart", "seed": 1},
    {"prompt": "two green stars", "seed": 2, "n": 3, "guidance": 3.0},
    {"prompt": "", "seed": 3, "guidance": 2.0, "guidance_until": 6},
    {"prompt": "लाल दिल", "seed": 4, "temperature": 0.5, "top_k": 6},
    {"prompt": "a red heart", "seed": 5, "n": 2, "top_p": 0.7},
    {"prompt": "a blue circle on a white background", "seed": 6, "temperature": 0},
]


def alone(pipe: TextToImage, body: dict[str, Any]) -> list[bytes]:
    options = {key: value for key, value in body.items() if key not in ("prompt", "seed", "n")}
    found = []
    for seed in range(body["seed"], body["seed"] + body.get("n", 1)):  # one at a time
        found += [image.tobytes() for image in pipe(body["prompt"], seed=seed, **options)[0].images]
    return found


@pytest.mark.parametrize("rolls", [True, False])
def test_batched_images_equal_images_generated_alone(
    rolls: bool, tiny_model: Path, tiny_pipe: TextToImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not rolls:
        monkeypatch.setattr(RollingBatch, "supports", lambda _model: False)
    with running(tiny_model, max_batch=8) as served, served.http() as http, ThreadPoolExecutor(8) as pool:
        with Gate(served):
            waiting = [pool.submit(http.post, "/v1/images/generations", json=body) for body in BODIES]
            until(lambda: len(served.worker.queue) == 9)
        for body, answer in zip(BODIES, waiting):
            assert pixels(answer.result()) == alone(tiny_pipe, body)
        text = http.get("/metrics").text
        assert 'dalle_batch_size_bucket{le="8.0"} 2' in text and "dalle_images_total 9" in text
        assert "dalle_image_tokens_total 144" in text and "dalle_queue_images 0" in text


def test_requests_join_a_running_batch_at_the_next_token(
    tiny_model: Path, tiny_pipe: TextToImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others arrive when the first has seven tokens, one of them with half of its image given."""
    pause = Pause(monkeypatch, 7)
    file = io.BytesIO()
    tiny_pipe("a red heart", seed=1)[0].images[0].save(file, "PNG")
    form: dict[str, Any] = {"files": {"image": ("a.png", file.getvalue(), "image/png")}}
    form["data"] = {"prompt": "two green stars", "seed": "9", "keep_rows": "0.5"}
    with running(tiny_model) as served, served.http() as http, ThreadPoolExecutor(8) as pool:
        first = pool.submit(http.post, "/v1/images/generations", json=BODIES[0])
        assert pause.reached.wait(60)
        others = [pool.submit(http.post, "/v1/images/generations", json=body) for body in BODIES[1:]]
        until(lambda: len(served.worker.queue) == 8)
        late = pool.submit(http.post, "/v1/images/variations", **form)
        until(lambda: len(served.worker._calls) == 1)  # its image is to be encoded
        pause.go.set()
        for body, answer in zip(BODIES, [first, *others]):
            assert pixels(answer.result()) == alone(tiny_pipe, body)
        (continued,) = tiny_pipe(
            "two green stars", seed=9, keep_rows=0.5, image=Image.open(io.BytesIO(file.getvalue()))
        )
        assert pixels(late.result()) == [continued.images[0].tobytes()]
    assert [8, *[1] * 8] in pause.seen


@pytest.mark.parametrize("rolls", [True, False])
def test_disconnected_clients_leave_the_batch(
    rolls: bool, tiny_model: Path, tiny_pipe: TextToImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of a batch hang up in the middle of it; the third's image is not changed by that, and no work is left."""
    own = TextToImage.from_pretrained(tiny_model, device="cpu")
    pause = Pause(monkeypatch, 7)
    if not rolls:  # as for a model whose images must all be at one position
        monkeypatch.setattr(RollingBatch, "supports", lambda _model: False)
        draw = own.draw

        def slow(*args: Any, watch: Any, **options: Any) -> Any:
            def watching(codes: Any, settled: int) -> None:
                if settled == 7 and not pause.reached.is_set():
                    pause.reached.set()
                    assert pause.go.wait(60)
                watch(codes, settled)

            return draw(*args, watch=watching, **options)

        own.draw = slow  # type: ignore[method-assign]
    body = {"prompt": "two green stars", "seed": 11, "guidance": 2.0}
    with running(tiny_model, own) as served, served.http() as http, ThreadPoolExecutor(2) as pool:
        with Gate(served):
            staying = pool.submit(http.post, "/v1/images/generations", json=body)
            until(lambda: len(served.worker.queue) == 1)
            gone = [_send(served, {"prompt": "a red heart", "stream": stream}) for stream in (False, True)]
            until(lambda: len(served.worker.queue) == 3)
        assert pause.reached.wait(60)
        for one in gone:
            one.close()
        until(lambda: sum(unit.job.canceled for unit in served.worker._active) == 2)
        pause.go.set()
        assert pixels(staying.result()) == alone(tiny_pipe, body)
        until(lambda: not served.worker.busy)
        assert "dalle_canceled_images_total 2" in http.get("/metrics").text
        assert not served.worker.queue.held


def _send(served: Running, body: dict[str, Any]) -> socket.socket:
    content = httpx.Request("POST", "http://a/", json=body).read()
    head = "POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    one = socket.create_connection(served.address)
    one.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return one


def test_full_queue_gives_429_and_a_timeout_504(tiny_model: Path) -> None:
    with running(tiny_model, max_waiting=3, request_timeout=0.5, max_requests=4) as served, served.http() as http:
        gate = Gate(served)
        with gate, ThreadPoolExecutor(2) as pool:
            late = pool.submit(http.post, "/v1/images/generations", json={"prompt": "a", "n": 2})
            until(lambda: len(served.worker.queue) == 2)
            full = http.post("/v1/images/generations", json={"prompt": "a", "n": 2})
            assert full.status_code == 429 and int(full.headers["Retry-After"]) >= 1
            assert full.json()["error"]["code"] == "rate_limit_exceeded"
            assert late.result().status_code == 504
            assert len(served.worker.queue) == 0
        # Half a second may be too little for a busy machine, but not for ever
        until(lambda: http.post("/v1/images/generations", json={"prompt": "a"}).status_code == 200)


@pytest.mark.parametrize("where", ["joining", "finishing", "batch"])
def test_failing_request_does_not_fail_its_batch(
    where: str, tiny_model: Path, tiny_pipe: TextToImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it cannot join a rolling batch, breaks one at its end, or is in a batch of one position."""
    own = TextToImage.from_pretrained(tiny_model, device="cpu")

    def failing(method: Callable[..., Any], place: int) -> Callable[..., Any]:
        def fail(*args: Any, **options: Any) -> Any:
            if any(request.prompt == "bad" for request in args[place]):
                raise RuntimeError("secret detail")
            return method(*args, **options)

        return fail

    monkeypatch.setattr(own, "draw", failing(own.draw, 0))
    if where == "joining":
        monkeypatch.setattr(own, "candidates", failing(own.candidates, 0))
    elif where == "finishing":
        monkeypatch.setattr(own, "finish", failing(own.finish, 1))
    else:
        monkeypatch.setattr(RollingBatch, "supports", lambda _model: False)
    with running(tiny_model, own) as served, served.http() as http, ThreadPoolExecutor(3) as pool:
        with Gate(served):
            good = pool.submit(http.post, "/v1/images/generations", json=BODIES[0])
            bad = pool.submit(http.post, "/v1/images/generations", json={"prompt": "bad"})
            until(lambda: len(served.worker.queue) == 2)
        assert pixels(good.result()) == alone(tiny_pipe, BODIES[0])
        assert bad.result().status_code == 500 and "secret" not in bad.result().text
        assert "Traceback" not in bad.result().text
        until(lambda: not served.worker.busy)
        assert not served.worker.queue.held


def test_images_that_cannot_join_are_drawn_with_those_that_keep_as_much(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = TextToImage.from_pretrained(tiny_model, device="cpu")
    worker, drawn = Worker(pipe, FairQueue(9, 9), 8), list[list[int]]()
    for client, lead in (("a", 4), ("b", 0), ("c", 4)):
        worker.submit(Job(Request("a", (1, 2), SamplingConfig()), client, lead, lambda event: None))

    def refuse(_requests: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(pipe, "candidates", refuse)
    monkeypatch.setattr(worker._batches, "draw", lambda units: drawn.append([unit.job.lead for unit in units]))
    worker._draw_next()
    assert drawn == [[4] * 4, [0] * 2]


@pytest.fixture
def draining(tiny_model: Path) -> Iterator[tuple[Running, httpx.Client]]:
    with running(tiny_model) as served, served.http() as http:
        yield served, http


def test_sigterm_finishes_running_requests_and_refuses_new_ones(
    draining: tuple[Running, httpx.Client], tiny_pipe: TextToImage
) -> None:
    served, http = draining
    with ThreadPoolExecutor(1) as pool:
        with Gate(served):
            running_one = pool.submit(http.post, "/v1/images/generations", json=BODIES[1])
            until(lambda: len(served.worker.queue) == 3)
            served.server.handle_exit(signal.SIGTERM, None)
            until(lambda: served.worker.draining)
            refused = http.post("/v1/images/generations", json=BODIES[0])
            assert refused.status_code == 503 and "Retry-After" in refused.headers
            assert http.get("/readyz").status_code == 503 and http.get("/healthz").status_code == 200
        assert pixels(running_one.result()) == alone(tiny_pipe, BODIES[1])
    served.thread.join(30)
    assert not served.thread.is_alive()
