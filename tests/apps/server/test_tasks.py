"""Paintings and an unCLIP's images on the server: those of the pipelines, with drawings going first in between."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

import dalle
from dalle.apps.vqgan_clip.optimize import Painter
from dalle.pipelines.text_to_image import TextToImage
from dalle.pipelines.unclip import UnCLIP
from support.server import Running, running, until
from support.tiny_model import IMAGE_SIZE, make_tiny_model
from support.tiny_unclip import make_tiny_unclip

PAINTING = {"prompt": "a red heart | लाल दिल:0.5", "steps": 6, "cutouts": 2, "seed": 3}


@pytest.fixture(scope="module")
def unclip(tmp_path_factory: pytest.TempPathFactory) -> UnCLIP:
    return UnCLIP.from_pretrained(make_tiny_unclip(tmp_path_factory.mktemp("unclip")), device="cpu")


@pytest.fixture(scope="module")
def served(tiny_model: Path, unclip: UnCLIP) -> Iterator[Running]:
    with running(tiny_model, unclip=unclip, max_steps=8, max_n=4) as one:
        yield one


@pytest.fixture(scope="module")
def painting(tiny_model: Path) -> Image.Image:
    """What `dalle.paint` makes of the same options."""
    models = {"image_tokenizer": str(tiny_model.parent / "image_tokenizer"), "clip": (str(tiny_model.parent / "clip"),)}
    return dalle.paint(**PAINTING, **models, device="cpu").image  # type: ignore[arg-type]


def image_of(content: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(content["b64_json"])))


def url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8))


def events_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(part.partition("\ndata: ")[2]) for part in text.strip().split("\n\n")]


def test_painting_equals_the_librarys(served: Running, painting: Image.Image) -> None:
    with served.http() as http:
        whole = http.post("/v1/paint", json=PAINTING)
        stream = http.post("/v1/paint", json=PAINTING | {"stream": True, "preview_every": 2})
    assert whole.status_code == 200, whole.text
    image = image_of(whole.json())
    assert image.convert("RGB").tobytes() == painting.tobytes()
    assert image.text["prompt"] == PAINTING["prompt"] and image.text["step"] == "6"  # type: ignore[attr-defined]
    events = events_of(stream.text)
    assert [(event["type"], event["step"]) for event in events] == [
        ("paint.partial_image", 2),
        ("paint.partial_image", 4),
        ("paint.completed", 6),
    ]
    assert image_of(events[-1]).convert("RGB").tobytes() == painting.tobytes()
    assert image_of(events[0]).convert("RGB").tobytes() != painting.tobytes()


def test_painting_may_start_from_an_image(served: Running) -> None:
    start = picture(1)
    with served.http() as http:
        answer = http.post("/v1/paint", json=PAINTING | {"steps": 1, "image": url(start), "init_weight": 1.0})
        white = http.post("/v1/paint", json=PAINTING | {"steps": 1})
    assert "init" in answer.json()["losses"] and "init" not in white.json()["losses"]
    assert image_of(answer.json()).tobytes() != image_of(white.json()).tobytes()


def test_generation_goes_before_painting_and_neither_changes_the_other(
    tiny_model: Path, painting: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A drawing that arrives in step 3 of a painting is drawn before step 4, and both come out as alone."""
    order: list[str] = []
    take_step, drawn = Painter.take_step, threading.Event()
    pipe = TextToImage.from_pretrained(tiny_model, device="cpu")
    (alone,) = pipe("two green stars", seed=5, guidance=2.0)
    candidates = pipe.candidates
    with running(tiny_model, pipe) as served, served.http() as http, ThreadPoolExecutor(1) as pool:
        waiting: list[Any] = []

        def watched(self: Painter) -> dict[str, float]:
            if self.step == 3:
                body = {"prompt": "two green stars", "seed": 5, "guidance": 2.0}
                waiting.append(pool.submit(http.post, "/v1/images/generations", json=body))
                until(lambda: len(served.worker.queue) == 1)
            order.append(f"step {self.step}")
            return take_step(self)

        def noted(*args: Any, **options: Any) -> Any:
            order.append("draw")
            drawn.set()
            return candidates(*args, **options)

        monkeypatch.setattr(Painter, "take_step", watched)
        monkeypatch.setattr(pipe, "candidates", noted)
        answer = http.post("/v1/paint", json=PAINTING)
        (other,) = waiting[0].result().json()["data"]
        text = http.get("/metrics").text
    assert order == ["step 0", "step 1", "step 2", "step 3", "draw", "step 4", "step 5"]
    assert image_of(answer.json()).convert("RGB").tobytes() == painting.tobytes()
    assert image_of(other).convert("RGB").tobytes() == alone.images[0].tobytes()
    assert "dalle_tasks_total 1" in text and "dalle_tasks 0" in text


def test_disconnecting_ends_the_painting(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take_step, reached, go = Painter.take_step, threading.Event(), threading.Event()
    steps: list[int] = []

    def slow(self: Painter) -> dict[str, float]:
        steps.append(self.step)
        if self.step == 2:
            reached.set()
            assert go.wait(60)
        return take_step(self)

    monkeypatch.setattr(Painter, "take_step", slow)
    with running(tiny_model) as served, served.http() as http:
        with http.stream("POST", "/v1/paint", json=PAINTING | {"stream": True, "preview_every": 1}) as answer:
            assert answer.status_code == 200 and reached.wait(60)
            with served.http() as other:  # a client has one at a time
                full = other.post("/v1/paint", json=PAINTING)
                assert full.status_code == 429 and "1 paintings, variations or blends of yours" in full.text
        task = served.worker.task
        assert task is not None
        until(lambda: task.canceled)
        go.set()
        until(lambda: not served.worker.busy)
        assert steps == [0, 1, 2]
        assert "dalle_canceled_tasks_total 1" in http.get("/metrics").text
        assert http.post("/v1/paint", json=PAINTING | {"steps": 1}).status_code == 200


def test_variations_and_blends_equal_the_pipelines(served: Running, unclip: UnCLIP) -> None:
    one, other = picture(1), picture(2)
    with served.http() as http:
        body = {"image": url(one), "n": 2, "eta": 0.7, "seed": 4, "steps": 3}
        varied = http.post("/v1/vary", json=body)
        wide = http.post("/v1/vary", json=body | {"image": url(one.resize((24, 16))), "n": 1, "steps": 1})
        blended = http.post("/v1/blend", json={"items": [url(one), "a red heart"], "frames": 3, "seed": 1, "steps": 3})
        mixed = http.post(
            "/v1/blend", json={"items": [url(one), url(other), "a"], "weights": [1, 0.5, 2], "seed": 1, "steps": 3}
        )
    for answer, expected in (
        (varied, unclip.vary(one, 2, 0.7, 4, 3)),
        (blended, unclip.blend([one, "a red heart"], None, 3, 1, 3)),
        (mixed, unclip.blend([one, other, "a"], [1, 0.5, 2], 5, 1, 3)),
    ):
        assert answer.status_code == 200, answer.text
        got = [image_of(entry).convert("RGB").tobytes() for entry in answer.json()["data"]]
        assert got == [image.tobytes() for image in expected]
    assert [entry["seed"] for entry in varied.json()["data"]] == [4, 5] and "notes" not in varied.json()
    assert wide.json()["notes"] == ["image of 24x16 cropped to its central square"]


WRONG: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "nothing to paint": ("paint", {"prompt": " ", "steps": 1}, "prompt", "the prompt is empty"),
    "one side empty": ("paint", {"prompt": "a ^ ", "steps": 1}, "prompt", "nothing on one side"),
    "steps": ("paint", {"prompt": "a", "steps": 9}, "steps", "at most 8"),
    "preset": ("paint", {"prompt": "a", "preset": "best"}, "steps", "at most 8"),
    "size": ("paint", {"prompt": "a", "steps": 1, "size": "17x16"}, "size", "multiples of 4"),
    "huge size": ("paint", {"prompt": "a", "steps": 1, "size": "4096x4096"}, "size", "pixels are painted"),
    "a path": ("paint", {"prompt": "a", "init": "/etc/passwd"}, "init", "there is no field init"),
    "weight": ("paint", {"prompt": "a", "steps": 1, "init_weight": -1}, "init_weight", "init_weight is -1"),
    "no image": ("paint", {"prompt": "a", "steps": 1, "image": "####"}, "image", "neither base64"),
    "many": ("vary", {"image": "####", "n": 5}, "n", "at most 4"),
    "many frames": ("blend", {"items": ["a", "b"], "frames": 5}, "frames", "frames is 5: at most 4"),
    "eta": ("vary", {"image": "####", "eta": 2}, "eta", "eta: "),
    "blend of one": ("blend", {"items": ["a"]}, "items", "items: "),
    "a URL": ("blend", {"items": ["a", "https://a.org/b"], "frames": 2, "steps": 1}, "items", "b in items is a URL"),
    "weights": ("blend", {"items": ["a", "b"], "weights": [1], "steps": 1}, None, "weights"),
    "no weights": ("blend", {"items": ["a", "b", "c"], "frames": 3, "steps": 1}, None, "need weights"),
}  # type: ignore[assignment]


@pytest.mark.parametrize("name", WRONG)
def test_wrong_fields_are_named(served: Running, name: str) -> None:
    path, body, param, message = WRONG[name]
    with served.http() as http:
        answer = http.post(f"/v1/{path}", json=body)
    error = answer.json()["error"]
    assert answer.status_code == 400, answer.text
    assert message in error["message"] and error["param"] == param and "\n" not in error["message"]


@pytest.mark.parametrize(("path", "body"), [("vary", {"image": url(picture(1))}), ("blend", {"items": ["a", "b"]})])
def test_another_model_than_the_servers_is_refused(served: Running, path: str, body: dict[str, Any]) -> None:
    short = {"n": 1, "steps": 1} if path == "vary" else {"frames": 2, "steps": 1}
    with served.http() as http:
        answer = http.post(f"/v1/{path}", json=body | short | {"model": "dall-e-9"})
        (model,) = http.get("/v1/models").json()["data"]
        own = http.post(f"/v1/{path}", json=body | short | {"model": model["id"]})
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "model_not_found"
    assert own.status_code == 200


def test_missing_components_are_not_offered(tmp_path: Path) -> None:
    plain = make_tiny_model(tmp_path, clip=False)
    with running(plain) as served, served.http() as http:
        (model,) = http.get("/v1/models").json()["data"]
        assert (model["paint"], model["unclip"], model["index"]) == (False, False, None)
        missing = [http.post(f"/v1/{path}", json={}) for path in ("paint", "vary", "blend")]
    assert all(answer.status_code == 404 for answer in missing)
    assert isinstance(missing[0], httpx.Response)
