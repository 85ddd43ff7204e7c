"""Random bodies: whatever a client sends is refused in OpenAI's shape or served, and the server goes on as before."""

from __future__ import annotations

import base64
import io
import json
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dalle.apps.search import ImageIndex
from dalle.apps.server.bodies import (
    BlendBody,
    Body,
    ClassifyBody,
    EditBody,
    EmbeddingBody,
    GenerationBody,
    PaintBody,
    SearchBody,
    VariationBody,
    VaryBody,
)
from dalle.pipelines.text_to_image import TextToImage
from dalle.pipelines.unclip import UnCLIP
from support.server import Running, running
from support.tiny_model import IMAGE_SIZE
from support.tiny_unclip import make_tiny_unclip


def png(mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (IMAGE_SIZE, IMAGE_SIZE)).save(buffer, "PNG")
    return buffer.getvalue()


URL = "data:image/png;base64," + base64.b64encode(png()).decode()
# A body of each endpoint that is served, of which some fields are then replaced
JSON: dict[str, tuple[type[Body], dict[str, Any]]] = {
    "images/generations": (GenerationBody, {"prompt": "a red heart", "seed": 1}),
    "paint": (PaintBody, {"prompt": "a red heart", "steps": 1, "cutouts": 1}),
    "vary": (VaryBody, {"image": URL, "n": 1, "steps": 1}),
    "blend": (BlendBody, {"items": [URL, "a"], "frames": 2, "steps": 1}),
    "search": (SearchBody, {"text": "a"}),
    "classify": (ClassifyBody, {"image": URL, "labels": ["a", "b"]}),
    "embeddings": (EmbeddingBody, {"input": ["a", URL]}),
}
FORMS: dict[str, tuple[type[Body], dict[str, str]]] = {
    "images/edits": (EditBody, {"prompt": "a red heart", "keep_rows": "2"}),
    "images/variations": (VariationBody, {"prompt": "a red heart"}),
}
EDGES = (
    *(None, True, False, 0, 1, -1, 2, 5, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**400, -(10**30)),
    *(0.0, -0.0, 0.5, 1e-320, 1e308, "", " ", "a", "\0", "\x1b[0m", "‮", "🙂" * 40, "लाल दिल", "e\u0301" * 50),
    *("1e999", "nan", "inf", "-1", "0x10", "64x64", "0x0", "auto", "99999x99999", "url", "webp", "jpeg", "{}", "{a}"),
    *(
        "width>=512",
        "width>",
        "a~b",
        "a|b:2^c:-1",
        "a:nan",
        "../../etc/passwd",
        "data:",
        "data:;base64,",
        URL,
        URL[:60],
    ),
    *([], {}, [[]], ["a"], ["a", "a"], ["", "b"], [URL, URL], {"a": []}, {"a": ["b"], "c": ["d"]}, {"a": "b"}, [1, 2]),
)
VALUES = st.one_of(
    st.sampled_from(EDGES),
    st.text(max_size=20),  # single surrogates among them
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.recursive(st.none() | st.booleans() | st.text(max_size=3), lambda one: st.lists(one, max_size=3), max_leaves=4),
)
FUZZ = settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def served(tiny_model: Path, tiny_pipe: TextToImage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root = tmp_path_factory.mktemp("fuzz")
    (root / "photos").mkdir()
    (root / "photos" / "a.png").write_bytes(png())
    ImageIndex.build(root / "photos.index", root / "photos", clip=tiny_pipe.clip)
    unclip = UnCLIP.from_pretrained(make_tiny_unclip(root / "two"), device="cpu")
    limits = {"max_n": 3, "max_candidates": 4, "max_steps": 2, "max_pixels": 10_000, "max_prompt": 200}
    with running(
        tiny_model, TextToImage.from_pretrained(tiny_model, device="cpu"), unclip, index=root / "photos.index", **limits
    ) as one:
        yield one


def names_of(body: type[Body]) -> st.SearchStrategy[str]:
    return st.sampled_from([*body.model_fields, "unknown"]) | st.text(string.ascii_letters, max_size=5)


def check(answer: httpx.Response, sent: object) -> None:
    """Served, or refused by words of one line in the one shape."""
    assert answer.status_code in (200, 400, 404), (sent, answer.status_code, answer.text[:500])
    assert "server_error" not in answer.text[-1000:], (sent, answer.text[-1000:])
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"} and "\n" not in error["message"], (sent, error)
        assert 0 < len(error["message"]) < 600, (sent, error)


@pytest.mark.parametrize("path", JSON)
def test_random_json_is_served_or_refused(served: Running, path: str) -> None:
    schema, base = JSON[path]

    with served.http() as http:

        @FUZZ
        @given(st.dictionaries(names_of(schema), VALUES, min_size=1, max_size=3))
        def send(changes: dict[str, Any]) -> None:
            content = json.dumps(base | changes).encode()  # ASCII: a single surrogate is an escape
            check(http.post(f"/v1/{path}", content=content, headers={"Content-Type": "application/json"}), changes)

        send()


@pytest.mark.parametrize("path", FORMS)
def test_random_forms_are_served_or_refused(served: Running, path: str) -> None:
    schema, base = FORMS[path]
    files = st.sampled_from([png(), png("RGBA"), png()[:60], b"", b"hello", b"%!PS-Adobe"])
    texts = st.sampled_from([str(one) for one in EDGES if not isinstance(one, int) or abs(one) < 10**40])
    fields = st.dictionaries(names_of(schema), texts | st.text(max_size=9), max_size=2)

    with served.http() as http:

        @FUZZ
        @given(fields, st.dictionaries(st.sampled_from(["image", "image[]", "mask", "photo"]), files, max_size=2))
        def send(changes: dict[str, str], given_files: dict[str, bytes]) -> None:
            form = {"image": png()} | given_files
            parts = {name: ("a.png", data, "image/png") for name, data in form.items()}
            try:
                answer = http.post(f"/v1/{path}", files=parts, data=base | changes)
            except UnicodeEncodeError:  # a single surrogate, which a form cannot hold
                return
            check(answer, (changes, list(given_files)))

        send()


def test_images_are_the_same_after_all_of_it(served: Running, tiny_pipe: TextToImage) -> None:
    (alone,) = tiny_pipe("a red heart", seed=7)
    with served.http() as http:
        (one,) = http.post("/v1/images/generations", json={"prompt": "a red heart", "seed": 7}).json()["data"]
    image = Image.open(io.BytesIO(base64.b64decode(one["b64_json"]))).convert("RGB")
    assert image.tobytes() == alone.images[0].tobytes() and served.worker.alive and not served.worker.busy
