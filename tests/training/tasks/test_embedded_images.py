"""Shards of embeddings and images: what is in them, training decoders and priors from them, wrong inputs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

import dalle
import train
from dalle.__main__ import main
from dalle.data import open_data
from dalle.data.loader import evaluation_batches
from dalle.data.shapes import ShapesConfig
from dalle.data.token_shards.dataset import EmbeddedImageShardsConfig
from dalle.data.token_shards.files import read_group, write_shard
from dalle.data.token_shards.provenance import EmbeddedImageProvenance
from dalle.images.transforms import resize_batch
from support.short_runs import TWO_STEPS

SHAPES = {"kind": "shapes", "shift": 0.0, "size": 40}  # nothing varies in an image, so all epochs are alike
OF_CLIP = {"embed_dim": 8, "text_width": 16, "text_length": 12}
UNET = {"channels": 8, "channel_multipliers": [1, 2], "attention_levels": [1], "head_channels": 8}
DECODER = {
    "stage": "diffusion",
    "model": {"kind": "decoder", "image_size": 8, "unet": UNET, "context_width": 8, **OF_CLIP},
    "sampling": {"guidance": 2.0, "sampler": {"steps": 2}},
}
PRIOR = {
    "stage": "prior",
    "model": {"kind": "diffusion", "transformer": {"width": 16, "depth": 1, "heads": 2}, **OF_CLIP},
    "sampling": {"sampler": {"steps": 2}},
}


@pytest.fixture(autouse=True)
def own_state() -> Iterator[None]:
    """Accelerate holds the first settings of a process for good."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


def recipe(content: dict, clip: str, folder: Path) -> str:
    run = TWO_STEPS["run"] | {"dir": str(folder / "run"), "steps": 6, "batch_size": 8, "log_every": 1}
    content = (
        content | {"data": SHAPES, "clip": clip, "statistics_images": 32} | {"optim": TWO_STEPS["optim"], "run": run}
    )
    file = folder / f"{content['stage']}.yaml"
    file.write_text(json.dumps(content))
    return str(file)


@pytest.fixture
def shards(clip: str, tmp_path: Path) -> Path:
    command = ["encode", recipe(DECODER, clip, tmp_path), str(tmp_path / "shards"), "--shard-images", "16"]
    assert main([*command, "--device", "cpu"]) == 0
    return tmp_path / "shards"


def losses(run: Path, name: str) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def test_rows_hold_image_and_embedding(clip: str, shards: Path) -> None:
    (batch,) = evaluation_batches(open_data(ShapesConfig(size=40, shift=0.0), "train", 16), 40)
    (found,) = evaluation_batches(open_data(EmbeddedImageShardsConfig(path=shards), "train", 16), 40)
    images = batch.unit_images(torch.device("cpu"))
    with torch.no_grad():
        expected = dalle.load_clip(clip).encode_image(images, normalize=False)
    assert found.captions == batch.captions and found.embeds is not None
    torch.testing.assert_close(found.embeds, expected)
    small = resize_batch(images, 8).clamp(0, 1) * 255
    assert found.images.shape == (40, 3, 8, 8) and (found.images.float() - small).abs().max() <= 0.5001
    first, second = found.split(2)
    assert torch.equal(torch.cat((first.embeds, second.embeds)), found.embeds)  # type: ignore[arg-type]


def test_decoder_trains_on_them_as_on_images(
    clip: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe(DECODER, clip, tmp_path)
    assert train.main([config, f"run.dir={tmp_path / 'images'}"]) == 0
    assert train.main([config, f"run.dir={tmp_path / 'again'}", f"data={{kind: embedded_images, path: {shards}}}"]) == 0
    for name in ("train/mse", "validation/mse"):
        wanted, found = (losses(tmp_path / run, name) for run in ("images", "again"))
        assert len(wanted) == len(found) > 0
        assert found == pytest.approx(wanted, rel=0.02)  # images are rounded to 8 bits once more
    assert isinstance(dalle.load_diffusion(tmp_path / "again/model").image_mean, torch.Tensor)  # type: ignore[union-attr]


def test_prior_trains_on_them_without_the_image_tower(
    clip: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe(PRIOR, clip, tmp_path)
    monkeypatch.setattr(dalle.models.clip.CLIP, "encode_image", lambda *_, **__: pytest.fail("the image tower ran"))
    assert train.main([config, f"data={{kind: embedded_images, path: {shards}}}"]) == 0


def test_embeddings_that_are_not_finite_are_damage(tmp_path: Path) -> None:
    made = EmbeddedImageProvenance(
        clip="x", embed_dim=1, side=1, data={}, records="", seed=0, views=1, mirror=False, shard_images=8
    )
    columns = {"key": ["a"], "view": [0], "mirrored": [False], "captions": [["a"]]}

    def row(value: float) -> np.ndarray:
        floats = np.array([value], dtype=np.float32).view(np.uint8)
        return np.concatenate((floats, np.array([1, 2, 3], dtype=np.uint8)))[None]

    write_shard(tmp_path / "a.parquet", columns, row(-2.25), made, [])
    image, embedding = made.unpack(read_group(tmp_path / "a.parquet", 0, 1, made).values[0])
    assert image.tolist() == [[[1, 2, 3]]] and embedding.tolist() == [-2.25]
    write_shard(tmp_path / "b.parquet", columns, row(float("inf")), made, [])
    with pytest.raises(ValueError, match="it is damaged .numbers that are not finite"):
        read_group(tmp_path / "b.parquet", 0, 1, made)


def test_shards_that_do_not_fit_give_a_one_line_error(
    clip: str, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, data = recipe(DECODER, clip, tmp_path), f"data={{kind: embedded_images, path: {shards}}}"
    upsampler = tmp_path / "upsampler.yaml"
    unet = UNET | {"attention_levels": []}
    content = {"stage": "diffusion", "model": {"kind": "upsampler", "image_size": 16, "low_size": 8, "unet": unet}}
    upsampler.write_text(json.dumps(content | TWO_STEPS | {"data": SHAPES, "crop": 0.5}))
    run = f"run.dir={tmp_path / 'run'}"
    for command, message in (
        ((train.main, [config, data, "model.image_size=16"]), "have 8 pixels a side, and model.image_size is 16"),
        ((train.main, [str(upsampler), data, run]), "an upsampler is trained on images of its own size"),
        (
            (main, ["encode", str(upsampler), str(tmp_path / "x"), run]),
            "trains an upsampler, which reads no embeddings",
        ),
        ((train.main, [config, f"data={{kind: embedded_images, path: {tmp_path}}}"]), "has no embedded_images.json"),
    ):
        assert command[0](command[1]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
