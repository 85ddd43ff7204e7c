"""/v1/search on a real index: the hits of `ImageIndex.search`, small images, what cannot be found; /v1/classify."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

import dalle
from dalle.apps.embed import fingerprint
from dalle.apps.search import ImageIndex
from dalle.apps.server.app import create_app
from dalle.apps.server.settings import ServeConfig
from dalle.apps.zeroshot import ZeroShotClassifier
from dalle.apps.zeroshot.calibration import Calibration
from dalle.apps.zeroshot.classifier import DOUBTFUL
from dalle.pipelines.text_to_image import TextToImage
from support.server import Running, running
from support.tiny_model import make_tiny_model

ROOT = Path(__file__).resolve().parents[3]


def picture(seed: int) -> Image.Image:
    """Large patches of color, which even random weights tell apart."""
    cells = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((300 + seed, 200), Image.Resampling.NEAREST)


@pytest.fixture(scope="module")
def pipe(tiny_model: Path) -> TextToImage:
    pipe = TextToImage.from_pretrained(tiny_model, device="cpu")
    assert pipe.clip is not None
    torch.manual_seed(0)
    with torch.no_grad():  # fresh weights ignore their input nearly wholly: these do not
        for parameter in pipe.clip.vision.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return pipe


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(12):
        picture(number).save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(f"image {number}, लाल दिल\n", encoding="utf-8")
    (folder / "copy.png").write_bytes((folder / "03.png").read_bytes())
    return folder


@pytest.fixture(scope="module")
def index(photos: Path, pipe: TextToImage, tmp_path_factory: pytest.TempPathFactory) -> ImageIndex:
    made, report = ImageIndex.build(tmp_path_factory.mktemp("index") / "photos.index", photos, clip=pipe.clip)
    assert report.images == 13
    return made


@pytest.fixture(scope="module")
def served(tiny_model: Path, pipe: TextToImage, index: ImageIndex) -> Iterator[Running]:
    with running(tiny_model, pipe, index=index.folder) as one:  # the index was made with the model's own CLIP
        yield one


def encoded(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


QUERIES: dict[str, dict[str, Any]] = {
    "a text": {"text": "a red heart"},
    "texts, and what they are not": {"text": ["a red heart", "लाल दिल"], "minus": "two green stars", "top": 5},
    "an image": {"image": 3, "top": 4},
    "an image without another": {"image": [3, 4], "minus_image": 5, "top": 6},
    "conditions": {"text": "a", "where": ["width>=305", "caption~image 1"]},
    "the nearest alone": {"image": 3, "min_score": 0.999},
    "no two alike": {"image": 3, "distinct": 0.999, "top": 13},
}


@pytest.mark.parametrize("name", QUERIES)
def test_hits_equal_the_indexes(served: Running, index: ImageIndex, name: str) -> None:
    query = QUERIES[name]
    own = {key: value for key, value in query.items() if key in ("minus", "where", "top", "min_score", "distinct")}
    images = {key: np.atleast_1d(query[key]).tolist() for key in ("image", "minus_image") if key in query}
    text = query.get("text", [])
    expected = index.search(
        [text] if isinstance(text, str) else text,
        [picture(seed) for seed in images.get("image", [])],
        minus_image=[picture(seed) for seed in images.get("minus_image", [])],
        **{"top": 20, **own} | ({"minus": [own["minus"]]} if "minus" in own else {}),
    )
    body = query | {key: [encoded(picture(seed)) for seed in seeds] for key, seeds in images.items()}
    with served.http() as http:
        answer = http.post("/v1/search", json=body)
    assert answer.status_code == 200, answer.text
    hits = answer.json()["data"]
    assert hits and [(hit["number"], hit["path"]) for hit in hits] == [(hit.number, hit.path) for hit in expected]
    assert [hit["score"] for hit in hits] == pytest.approx([hit.score for hit in expected], abs=1e-5)
    assert answer.json()["images"] == 13
    if name == "the nearest alone":
        assert {Path(hit["path"]).name for hit in hits} == {"03.png", "copy.png"}
    if name == "no two alike":
        assert len(hits) == 12


def test_thumbnails_of_hits_are_served(served: Running, index: ImageIndex) -> None:
    with served.http() as http:
        (hit,) = http.post("/v1/search", json={"image": encoded(picture(7)), "top": 1}).json()["data"]
        small = http.get(f"/v1/search/images/{hit['number']}")
        assert Path(hit["path"]).name == "07.png" and small.headers["content-type"] == "image/jpeg"
        image = Image.open(io.BytesIO(small.content))
        assert image.size == (192, round(200 * 192 / 307))
        assert http.get("/v1/search/images/13").json()["error"]["message"] == "there is no image 13: the index has 13"
        assert http.get("/v1/search/images/-1").status_code == 404
        wrong = http.get("/v1/search/images/first")
        assert wrong.status_code == 400 and wrong.json()["error"]["param"] == "number"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "text"),
        ({"text": "a", "where": "width<<3"}, "width<<3"),
        ({"text": "a", "top": 0}, "top: "),
        ({"image": "####"}, "neither base64"),
        ({"text": "a" * 5000}, "5,000 characters"),
        ({"text": "a", "query": "b"}, "no field query"),
    ],
)
def test_wrong_queries_are_refused(served: Running, body: dict[str, Any], message: str) -> None:
    with served.http() as http:
        answer = http.post("/v1/search", json=body)
    assert answer.status_code == 400 and message in answer.json()["error"]["message"]


def test_vanished_image_gives_404(served: Running, index: ImageIndex, photos: Path) -> None:
    numbers = {Path(index.hit(number).path).name: number for number in range(13)}
    content = (photos / "11.png").read_bytes()
    (photos / "11.png").unlink()
    with served.http() as http:
        answer = http.get(f"/v1/search/images/{numbers['11.png']}")
    (photos / "11.png").write_bytes(content)
    assert answer.status_code == 404 and "cannot be read any more" in answer.json()["error"]["message"]


def test_index_of_another_clip_is_refused(tiny_model: Path, index: ImageIndex, tmp_path: Path) -> None:
    other = make_tiny_model(tmp_path, seed=1)  # given, or found where the index says
    with (
        pytest.raises(ValueError, match="CLIP"),
        running(other, index=index.folder, clip=str(other.parent / "clip")),
    ):
        pass


def test_classification_is_calibrated_by_the_file_beside_the_clip(tmp_path: Path) -> None:
    """As `dalle classify` does; a file of another CLIP is refused at the start."""
    model = make_tiny_model(tmp_path)
    folder = model / "clip"
    clip = dalle.load_clip(folder)
    body = {"image": encoded(picture(1)), "labels": ["heart", "star"], "threshold": 0.1}
    found = []
    for calibration in (None, Calibration(3.0, 1.5, 10, fingerprint(clip))):
        if calibration is not None:
            calibration.write(folder / "calibration.json")
        expected = ZeroShotClassifier.from_pretrained(["heart", "star"], folder)(picture(1), threshold=0.1)[0]
        for source in ({}, {"clip": str(folder)}):
            with running(model, TextToImage.from_pretrained(model, device="cpu"), **source) as one, one.http() as http:
                (answer,) = http.post("/v1/classify", json=body).json()["data"]
            assert answer["none"] == pytest.approx(expected.none, abs=1e-5) and "doubtful" not in answer
            assert [one["label"] for one in answer["labels"]] == expected.labels
        found.append(answer["none"])
    assert found[0] != pytest.approx(found[1], abs=1e-3)
    Calibration(clip="another").write(folder / "calibration.json")
    with pytest.raises(ValueError, match="another CLIP"), running(model):
        pass


def test_shipped_model_says_when_no_label_fits() -> None:
    """A photo-like noise is none of two things, a drawing of a dog is one of them."""
    pipe = TextToImage.from_pretrained(device="cpu")
    app = create_app(pipe, ServeConfig())
    classify = ZeroShotClassifier.from_pretrained(["dog", "palm tree"])
    with TestClient(app, base_url="http://127.0.0.1") as http:
        for image in (Image.open(ROOT / "examples/images/dog.png").convert("RGB"), picture(3)):
            body = {"image": encoded(image), "labels": classify.labels}
            (answer,) = http.post("/v1/classify", json=body).json()["data"]
            (expected,) = classify(image, with_none=True)
            assert answer["none"] == pytest.approx(expected.none, abs=1e-4)
            assert answer["doubtful"] is (answer["none"] > DOUBTFUL)
            assert [one["label"] for one in answer["labels"]] == expected.labels
