"""What `dalle eval clip` and `dalle eval probe` print: retrieval, zero-shot accuracy, a linear probe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import dalle
from dalle.__main__ import main
from dalle.apps.clip_report import EmbeddedImages, features_of, probe_metrics
from dalle.data.labeled import open_labeled_images
from dalle.models.clip import CLIP
from support.tiny_configs import clip_config
from support.tiny_model import make_tiny_model


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny")).parent / "clip"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten images each of red and of blue, with captions, and a broken one."""
    for number in range(20):
        name = ("red", "blue")[number % 2]
        file = tmp_path / "photos" / name / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        color = tuple(200 if channel == name else 4 * number for channel in ("red", "green", "blue"))
        Image.new("RGB", (12, 12), color).save(file)
        file.with_suffix(".txt").write_text(f"a {name} square, number {number}")
    (tmp_path / "photos/red/broken.png").write_bytes(b"\x89PNG")
    (tmp_path / "photos/red/broken.txt").write_text("nothing")
    return tmp_path / "photos"


def evaluated(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict:
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_report_has_retrieval_zero_shot_and_probe(
    source: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluated(["eval", "clip", str(source), str(photos), "--templates", "plain"], capsys)
    assert found["left_out"] == {} and len(found["skipped"]) == 1 and "broken.png" in found["skipped"][0]
    clip = dalle.load_clip(source)
    files = sorted(photos.rglob("*.png"))
    files.remove(photos / "red/broken.png")
    images = torch.stack([pixels(file) for file in files])
    with torch.no_grad():
        vectors = clip.encode_image(images)
        texts = clip.encode_text([file.with_suffix(".txt").read_text() for file in files])
        labels = clip.encode_text(["blue", "red"])
    for k in (1, 5, 10):
        ranks = [int((row >= row[number]).sum()) for number, row in enumerate(vectors @ texts.T)]
        assert found["retrieval"][f"image_to_text@{k}"] == sum(rank <= k for rank in ranks) / 20
    right = [("blue", "red")[int(row.argmax())] == file.parent.name for row, file in zip(vectors @ labels.T, files)]
    assert found["zero_shot"]["top_1"] == sum(right) / 20
    assert found["probe"]["top_1"] == 1 and found["probe"]["images"] == 4 and found["probe"]["train_images"] == 16
    assert main(["eval", "clip", str(source), str(photos)]) == 0
    told = capsys.readouterr().out
    assert [line.split()[:2] for line in told.splitlines()[1:3]] == [
        ["retrieval", "image_to_text@1"],
        ["retrieval", "image_to_text@5"],
    ]


def pixels(file: Path) -> torch.Tensor:
    red, green, blue = Image.open(file).getpixel((0, 0))
    return torch.tensor([red, green, blue])[:, None, None].expand(3, 8, 8) / 255


def test_probe_is_tested_on_other_images(source: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluated(["eval", "probe", str(source), str(photos), "--test", str(photos)], capsys)["probe"]
    assert found["top_1"] == found["mean_per_class"] == 1 and found["train_images"] == found["images"] == 20


@pytest.mark.slow
def test_probe_is_tested_on_another_split(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    emoji = evaluated(
        ["eval", "probe", str(source), "emoji", "--split", "test_block", "--test-split", "validation"], capsys
    )
    assert (emoji["probe"]["train_images"], emoji["probe"]["images"]) == (121, 255)
    assert 0 <= emoji["probe"]["top_1"] <= 1


def test_probe_features_are_the_projections_input(source: Path, photos: Path) -> None:
    clip = dalle.load_clip(source)
    found = features_of(clip, open_labeled_images(str(photos)))
    assert found.names == ["blue"] * 10 + ["red"] * 10 and found.features.shape == (20, 16)
    images = torch.stack([pixels(file) for file in sorted((photos / "blue").glob("*.png"))])
    with torch.no_grad():
        expected = clip.encode_image(images, normalize=False)
        torch.testing.assert_close(clip.vision.projection(found.features[:10]), expected)


def test_missing_captions_or_classes_are_named(source: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in photos.rglob("*.txt"):
        text.unlink()
    found = evaluated(["eval", "clip", str(source), str(photos)], capsys)
    assert "no captions" in found["left_out"]["retrieval"] and set(found) >= {"zero_shot", "probe"}
    flat = photos.parent / "flat"
    flat.mkdir()
    Image.new("RGB", (9, 9), "red").save(flat / "a.png")
    assert main(["eval", "clip", str(source), str(flat)]) == 2
    error = capsys.readouterr().err
    assert "no captions" in error and "nor classes" in error and error.count("\n") == 1
    (flat / "a.txt").write_text("a red square")
    found = evaluated(["eval", "clip", str(source), str(flat)], capsys)
    assert "lies in no subfolder" in found["left_out"]["probe"] and found["retrieval"]["images"] == 1
    assert main(["eval", "clip", str(source), str(flat)]) == 0
    error = capsys.readouterr().err
    assert "no zero-shot and no probe: " in error and error.count("lies in no subfolder") == 1
    for words, message in {
        ("eval", "probe", str(source), str(flat)): "lies in no subfolder",
        ("eval", "probe", str(source), "emoji", "--by", "taste"): "emoji have no classes by 'taste'",
        ("eval", "clip", str(source), "emoji", "--by", "taste"): "emoji have no classes by 'taste'",
        ("eval", "clip", str(source), str(flat.parent / "none")): "no such file or folder",
        ("eval", "probe", str(source.parent / "model"), str(photos)): "holds a DALL-E, expected a CLIP",
    }.items():
        assert main(list(words)) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_unknown_test_class_is_refused(source: Path) -> None:
    some = EmbeddedImages(torch.rand(4, 3), ["a", "a", "b", "b"])
    with pytest.raises(ValueError, match="class 'c' of the test images is not among the 2"):
        probe_metrics(some, EmbeddedImages(torch.rand(1, 3), ["c"]))
    # With none to test on, one image of each class is held out for that, and one for the strength
    with pytest.raises(ValueError, match="class 'a' has 2 images: a probe needs at least 3 of each"):
        probe_metrics(some)
    with pytest.raises(ValueError, match="class 'a' has 1 image: a probe needs at least 2 of each"):
        probe_metrics(EmbeddedImages(torch.rand(3, 3), ["a", "b", "b"]), some)


def test_siglip_pooled_images_equal_its_embeddings() -> None:
    clip = CLIP(clip_config(embed_dim=16, towers="siglip", sigmoid=True)).eval()
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(clip.pooled_image(images), clip.encode_image(images, normalize=False))
