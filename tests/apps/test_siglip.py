"""Painting, ranking, search, classification and evaluation with SigLIPs as transformers and open_clip publish them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import dalle
import sample
from dalle.__main__ import main
from dalle.images.transforms import resize_batch, to_tensor
from support.published.siglips import hub_folder, open_clip_folder, words

THINGS = ("heart", "star", "lion")


@pytest.fixture(scope="module", params=["transformers", "open_clip"])
def siglip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SigLIP with random weights and a text tokenizer, as published."""
    folder = tmp_path_factory.mktemp("siglip")
    if request.param == "open_clip":
        return open_clip_folder(folder, content=words(1, 60))
    pytest.importorskip("transformers", reason='pip install "dalle[t5]"')
    hub_folder(folder, words(1, 60))
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images of each of three classes, with captions."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(12):
        file = root / THINGS[number % 3] / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.effect_noise((40, 36), 20.0 * number + 1).convert("RGB").save(file)
        file.with_suffix(".txt").write_text(f"a {THINGS[number % 3]} {number}")
    return root


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command and reads its JSON."""

    def run(*command: str | Path) -> Any:
        assert main([*map(str, command)]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def read(images: list[Path], side: int | None = None) -> torch.Tensor:
    """Images of one size [B, 3, side, side]; of their own size without `side`."""
    opened = [Image.open(image).convert("RGB") for image in images]
    return torch.cat([to_tensor(image, side or image.width, side or image.height) for image in opened])


@torch.inference_mode()
def probabilities(source: Path, images: torch.Tensor, texts: list[str]) -> list[list[float]]:
    """The sigmoid of scaled cosines and bias, written out; [images, texts]."""
    clip = dalle.load_clip(source)
    seen = clip.encode_image(images)
    assert clip.logit_bias is not None
    logits = clip.logit_scale.exp() * seen @ clip.encode_text(texts).T + clip.logit_bias
    found: list[list[float]] = logits.sigmoid().tolist()
    return found


def test_paints(siglip: Path, tiny_parts: Path, tmp_path: Path, told: Any) -> None:
    options = ["--clip", siglip, "--image-tokenizer", tiny_parts / "image_tokenizer", "--device", "cpu", "--json"]
    start = ["--cutouts", "2", "--out", tmp_path, "--seed", "1"]
    found = told("paint", "a red heart | a star:-0.5", "--steps", "3", *start, *options)
    assert found["steps"] == 3 and found["losses"]["clip"] == pytest.approx(found["losses"]["loss"])
    other = told("paint", "a blue lion", "--steps", "3", *start, *options)
    painted = [Image.open(one["image"]).tobytes() for one in (found, other)]
    assert painted[0] != painted[1]


def test_ranks_by_probability(siglip: Path, tiny_model: Path, tmp_path: Path) -> None:
    options = ["--model", str(tiny_model), "--clip", str(siglip), "--out", str(tmp_path), "--n", "4", "--keep", "3"]
    assert sample.main(["a red heart", *options, "--device", "cpu"]) == 0
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    rows = json.loads((folder / "scores.json").read_text(encoding="utf-8"))["images"]
    scores = [row["score"] for row in rows]
    assert scores == sorted(scores, reverse=True) and len(scores) == 3
    large = resize_batch(read([folder / row["file"] for row in rows]), 32)
    wanted = probabilities(siglip, large, ["a red heart"])
    assert scores == pytest.approx([value for (value,) in wanted], rel=1e-2)  # files have 8 bits


def test_searches_by_probability(siglip: Path, photos: Path, tmp_path: Path, told: Any) -> None:
    index = tmp_path / "photos.index"
    assert told("index", photos, "--out", index, "--clip", siglip, "--json")["images"] == 12
    found = told("search", index, "a star", "--json")["found"]
    values = [hit["probability"] for hit in found]
    assert values == sorted(values, reverse=True) and len(values) == 12
    wanted = probabilities(siglip, read([Path(hit["path"]) for hit in found], 32), ["a star"])
    assert values == pytest.approx([value for (value,) in wanted], rel=2e-2)  # the index holds 16-bit vectors
    floor = (values[4] + values[5]) / 2
    assert [
        hit["probability"] for hit in told("search", index, "a star", "--min-score", str(floor), "--json")["found"]
    ] == values[:5]
    weighted = told("search", index, "--weights", "a star:1, a lion:-0.5", "--json")["found"]
    assert {hit["probability"] for hit in weighted} == {None}  # of a sum of vectors there is none


def test_classifies_with_independent_probabilities(siglip: Path, photos: Path, told: Any) -> None:
    images = sorted((photos / "star").glob("*.png"))
    command = [
        "classify",
        photos / "star",
        "--labels",
        "heart,star,lion",
        "--clip",
        siglip,
        "--template",
        "{}",
        "--json",
    ]
    found = told(*command)["images"]
    wanted = probabilities(siglip, read(images, 32), list(THINGS))
    by_name = {Path(one["image"]).name: one for one in found}
    for image, row in zip(images, wanted, strict=True):
        got = {one["label"]: one["probability"] for one in by_name[image.name]["labels"]}
        assert got == pytest.approx(dict(zip(THINGS, row, strict=True)), abs=1e-5)
    none = told(*command, "--threshold", "1")["images"][0]
    assert none["labels"] == []
    row = wanted[[image.name for image in images].index(Path(none["image"]).name)]
    assert none["none"] == pytest.approx((1 - row[0]) * (1 - row[1]) * (1 - row[2]), abs=1e-5)


def test_is_evaluated_and_probed(siglip: Path, photos: Path, told: Any, capsys: pytest.CaptureFixture[str]) -> None:
    found = told("eval", "clip", siglip, photos, "--json")
    assert found["retrieval"]["images"] == found["zero_shot"]["images"] == 12
    assert 0 <= found["retrieval"]["text_to_image@10"] <= 1 and set(found["probe"]) >= {"top_1", "strength"}
    assert told("eval", "probe", siglip, photos, "--json")["probe"] == found["probe"]
    assert main(["eval", "classify", str(photos), "--clip", str(siglip), "--calibrate", "c.json"]) == 2
    assert "a SigLIP gives each label a probability of its own" in capsys.readouterr().err
