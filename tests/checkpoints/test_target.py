"""What a folder of weights may be written over: a model of the same stage, of which nothing but its card stays."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dalle.checkpoints.model_folder import ModelFolder, export, folder_hash, save
from dalle.checkpoints.target import check_no_model, check_target

CLIP = {"stage": "clip", "model": {"width": 4}}
MODEL = {"stage": "dalle", "model": {"width": 8}}


def weights(seed: int) -> dict[str, torch.Tensor]:
    return {"weight": torch.randn(4, 4, generator=torch.Generator().manual_seed(seed))}


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A DALL-E with a CLIP, cards and a picture."""
    save(tmp_path / "clip", CLIP, weights(1))
    save(tmp_path / "model", MODEL, weights(0), parts={"clip": tmp_path / "clip"}, card="the card")
    (tmp_path / "model" / "samples.png").write_bytes(b"picture")
    (tmp_path / "model" / "clip" / "README.md").write_text("the card of its CLIP")
    return tmp_path / "model"


def test_a_model_of_another_stage_is_not_replaced(model: Path, tmp_path: Path) -> None:
    before = content(model)
    said = "holds a model of stage 'dalle', which one of stage 'clip' does not replace: give a new folder"
    for write in (
        lambda: save(model, CLIP, weights(2)),
        lambda: export(tmp_path / "clip", model, "float32"),
        lambda: check_target(model, "clip"),
    ):
        with pytest.raises(ValueError, match=said):
            write()
    assert content(model) == before


def test_export_replaces_the_whole_model(model: Path, tmp_path: Path) -> None:
    """Components that the new one lacks would be a mixture with the old: they are gone, and the card stays."""
    save(tmp_path / "new", MODEL, weights(3))
    assert export(tmp_path / "new", model, "float32")
    kept = {"README.md": b"the card", "samples.png": b"picture"}
    assert content(model) == content(tmp_path / "new") | kept
    assert not export(tmp_path / "new", tmp_path / "elsewhere", "float32")


def test_export_drops_what_was_fitted_to_the_weights_of_before(tmp_path: Path) -> None:
    for name, seed in (("old", 1), ("new", 2)):
        save(tmp_path / name, CLIP, weights(seed))
    (tmp_path / "old" / "calibration.json").write_text("{}")
    assert export(tmp_path / "new", tmp_path / "old", "float32")
    assert content(tmp_path / "old") == content(tmp_path / "new")
    (tmp_path / "new" / "calibration.json").write_text("{}")  # one of the new weights comes with them
    assert export(tmp_path / "new", tmp_path / "old", "float32")
    assert (tmp_path / "old" / "calibration.json").is_file()


def test_export_replaces_components_and_keeps_their_cards(model: Path, tmp_path: Path) -> None:
    save(tmp_path / "other", CLIP, weights(4))
    save(tmp_path / "new", MODEL, weights(3), parts={"clip": tmp_path / "other"})
    (model / "clip" / "vocab.json").write_text("{}")  # of the old one: it would change the hash
    assert export(tmp_path / "new", model, "float32")
    assert folder_hash(ModelFolder(model).component("clip").path) == folder_hash(tmp_path / "other")
    assert (model / "clip" / "README.md").read_text() == "the card of its CLIP"


def test_saving_keeps_the_card_alone(model: Path) -> None:
    save(model, MODEL, weights(3))
    assert set(content(model)) == {"README.md", "config.yaml", "model.safetensors"}
    assert (model / "README.md").read_text() == "the card"


def test_no_run_is_made_in_a_model_folder(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="model holds a model, and a run would write over"):
        check_no_model(model, "run.dir=FOLDER")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("stage: clip\n")  # a recipe, to train from
    check_no_model(tmp_path / "run", "run.dir=FOLDER")
