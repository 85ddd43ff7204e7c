"""Embedding shards: what is in them against the CLIP, training priors from them against images, and wrong inputs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from accelerate.state import AcceleratorState

import dalle
import train
from dalle.__main__ import main
from dalle.checkpoints import model_folder
from dalle.checkpoints.model_folder import folder_hash
from dalle.config import from_dict, to_dict
from dalle.data import ShapesConfig, open_data
from dalle.data.loader import pair_seed
from dalle.data.token_shards.dataset import EmbeddingShardsConfig
from dalle.data.token_shards.files import read_group, write_shard
from dalle.data.token_shards.provenance import EmbeddingProvenance
from dalle.models.clip import CLIP
from dalle.training.recipe import PriorRecipe
from dalle.training.tasks.prior import PriorTask
from support.short_runs import TWO_STEPS
from support.tiny_configs import clip_config

MODEL = {
    "transformer": {"width": 16, "depth": 1, "heads": 2},
    "embed_dim": 8,
    "text_width": 16,
    "text_length": 12,
}
KINDS = {
    "diffusion": {"sampling": {"samples": 2, "sampler": {"steps": 2}}},
    "autoregressive": {"model": MODEL | {"kind": "autoregressive", "buckets": 8, "dot_buckets": 4, "variance": 0.9}},
}
SHAPES = {"kind": "shapes", "shift": 0.0, "size": 40}  # nothing varies in an image, so all epochs are alike


@pytest.fixture(autouse=True)
def own_state() -> Iterator[None]:
    """Accelerate holds the first settings of a process for good."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


def recipe(clip: str, folder: Path, kind: str = "diffusion", **changes: object) -> Path:
    content: dict = {"stage": "prior", "model": MODEL | {"kind": "diffusion"}, "data": SHAPES, "clip": clip}
    run = TWO_STEPS["run"] | {"dir": str(folder / "run"), "steps": 8, "batch_size": 8, "log_every": 1}
    content |= {"statistics_images": 32, "bpe_dropout": 0.2, "caption_dropout": 0.3} | TWO_STEPS | {"run": run}
    file = folder / "prior.yaml"
    file.write_text(json.dumps(content | KINDS[kind] | changes))
    return file


def figures(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rates = ("_per_s", "_gb", "data_wait")
    return [{name: value for name, value in line.items() if not name.endswith(rates)} for line in lines]


def test_rows_hold_the_embeddings_of_the_images(clip: str, tmp_path: Path) -> None:
    config, shards = recipe(clip, tmp_path), tmp_path / "shards"
    options = ["data.shift=0.05", "--views", "2", "--mirror", "--batch-size", "7"]
    assert main(["encode", str(config), str(shards), *options, "--device", "cpu"]) == 0
    source = open_data(ShapesConfig(size=40, shift=0.05), "train", 16)
    model = dalle.load_clip(clip)
    rows = parquet.read_table(shards / "train-00000.parquet").to_pylist()
    assert [(row["view"], row["mirrored"]) for row in rows[:4]] == [(0, False), (0, True), (1, False), (1, True)]
    assert len(rows) == 4 * len(source)
    for number in range(0, len(rows), 13):
        row = rows[number]
        pair = source.pair(number // 4, pair_seed(0, row["view"], number // 4))
        pixels = torch.from_numpy(pair.image[:, ::-1].copy() if row["mirrored"] else pair.image.copy())
        with torch.no_grad():
            expected = model.encode_image(pixels.permute(2, 0, 1)[None].float() / 255, normalize=False)[0]
        torch.testing.assert_close(torch.tensor(row["embedding"]), expected)
        assert row["captions"] == [pair.caption]


@pytest.mark.parametrize("kind", KINDS)
def test_training_on_embedding_shards_equals_training_on_images(kind: str, clip: str, tmp_path: Path) -> None:
    config, shards = str(recipe(clip, tmp_path, kind)), tmp_path / "shards"
    assert main(["encode", config, str(shards), "--shard-images", "16", "--device", "cpu"]) == 0
    assert train.main([config, f"run.dir={tmp_path / 'images'}"]) == 0
    assert train.main([config, f"run.dir={tmp_path / 'shards_run'}", f"data={{kind: embeddings, path: {shards}}}"]) == 0
    expected, found = figures(tmp_path / "images"), figures(tmp_path / "shards_run")
    assert [list(line) for line in found] == [list(line) for line in expected]
    for line, other in zip(expected, found, strict=True):
        # The CLIP's sums are taken over batches of another size
        assert {name: other[name] for name in line} == pytest.approx(line, rel=1e-3, abs=1e-5)
    losses = [line["train/prior_loss"] for line in expected if "train/prior_loss" in line]
    assert len(set(losses)) == 8
    weights = [dalle.load_prior(tmp_path / run / "model").state_dict() for run in ("images", "shards_run")]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-4)


def test_image_tower_does_not_run_on_shards(clip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, shards = recipe(clip, tmp_path), tmp_path / "shards"
    assert main(["encode", str(config), str(shards), "--device", "cpu"]) == 0
    monkeypatch.setattr(dalle.models.clip.CLIP, "encode_image", lambda *_, **__: pytest.fail("the image tower ran"))
    assert train.main([str(config), f"data={{kind: embeddings, path: {shards}}}"]) == 0


def test_interrupted_encoding_keeps_finished_shards(clip: str, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    command = ["encode", str(recipe(clip, tmp_path)), str(shards), "--shard-images", "16", "--device", "cpu"]
    assert main(command) == 0
    content = {file.name: file.read_bytes() for file in shards.iterdir()}
    files = [f"train-0000{n}.parquet" for n in range(3)]
    assert sorted(content) == ["embeddings.json", *files, "validation-00000.parquet"]
    (shards / files[1]).unlink()
    kept = (shards / files[2]).stat().st_ino
    assert main(command) == 0
    assert {file.name: file.read_bytes() for file in shards.iterdir()} == content
    assert (shards / files[2]).stat().st_ino == kept


def test_shards_of_another_clip_are_refused(clip: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, shards, other = recipe(clip, tmp_path), tmp_path / "shards", tmp_path / "other"
    shape = clip_config(depth=1, text_vocab=4096)
    torch.manual_seed(1)
    parts = {"text_tokenizer": Path(clip) / "text_tokenizer"}
    model_folder.save(other, {"stage": "clip", "model": to_dict(shape)}, CLIP(shape).state_dict(), parts=parts)
    assert main(["encode", str(config), str(shards), "--device", "cpu"]) == 0
    capsys.readouterr()
    options = f"data={{kind: embeddings, path: {shards}}}"
    assert train.main([str(config), options, f"clip={other}"]) == 2
    error = capsys.readouterr().err
    assert f"sha256 {folder_hash(Path(clip))}" in error and folder_hash(other) in error and error.count("\n") == 1
    assert main(["encode", str(config), str(shards), f"clip={other}", "--device", "cpu"]) == 2
    assert "clip was" in capsys.readouterr().err
    assert main(["eval", clip, "kind=embeddings", f"path={shards}"]) == 2
    assert "holds embeddings, and" in capsys.readouterr().err
    assert main(["encode", str(config), str(tmp_path / "again"), options]) == 2
    assert "data.kind is embeddings already" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"has no embeddings\.json"):
        open_data(EmbeddingShardsConfig(path=tmp_path), "train", 16)


def test_embeddings_that_are_not_finite_are_damage(tmp_path: Path) -> None:
    made = EmbeddingProvenance(
        clip="x", embed_dim=2, data={}, records="", seed=0, views=1, mirror=False, shard_images=8
    )
    columns = {"key": ["a"], "view": [0], "mirrored": [False], "captions": [["रातो"]]}
    write_shard(tmp_path / "a.parquet", columns, np.array([[1.5, -2.25]], dtype=np.float32), made, [])
    assert read_group(tmp_path / "a.parquet", 0, 1, made).values.tolist() == [[1.5, -2.25]]
    write_shard(tmp_path / "b.parquet", columns, np.array([[np.nan, 1]], dtype=np.float32), made, [])
    with pytest.raises(ValueError, match="it is damaged .numbers that are not finite"):
        read_group(tmp_path / "b.parquet", 0, 1, made)


def test_statistics_are_those_of_the_images(clip: str, tmp_path: Path) -> None:
    config, shards = recipe(clip, tmp_path), tmp_path / "shards"
    assert main(["encode", str(config), str(shards), "--device", "cpu"]) == 0
    content = json.loads(config.read_text())
    means = []
    for data in (SHAPES, {"kind": "embeddings", "path": str(shards)}):
        task = PriorTask(from_dict(PriorRecipe, content | {"data": data}, "recipe"), torch.device("cpu"))
        means.append(task.model.image_mean)
    torch.testing.assert_close(means[0], means[1])
