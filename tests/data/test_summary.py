"""What is said of a data set before a training: counts, one example, and that it has changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from dalle.data import open_data, open_training
from dalle.data.custom.config import CustomConfig
from dalle.data.shapes import ShapesConfig
from dalle.data.summary import Summary, record_and_compare, summarize
from support.image_folders import put


def summary(config: CustomConfig | ShapesConfig) -> Summary:
    return summarize(open_training(config, 8), open_data(config, "validation", 8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    put(tmp_path, a_png=b"broken", a_txt="x", b_png=None, b_txt=f"one\n{'long ' * 30}", c_png=None, c_txt="two")
    put(tmp_path / "held", d_png=None, d_txt="three")
    return tmp_path


def test_summary_counts_images_and_captions_of_a_folder(folder: Path) -> None:
    config = CustomConfig(path=str(folder), validation_path=str(folder / "held"))
    assert str(summary(config)) == (
        "data: 4 images with 5 captions to train on, 1 to validate on; for example b.png: one"
    ) or "b.png: long long" in str(summary(config))
    (folder / "b.txt").write_text("long " * 30)
    assert str(summary(config)).endswith(f"for example b.png: {'long ' * 12}...")


def test_summary_of_a_stream_and_of_generated_data(folder: Path) -> None:
    told = str(summary(CustomConfig(path=str(folder), stream=True)))
    assert told == "data: read as a stream; the first record is a.png: x"
    told = str(summary(ShapesConfig()))
    assert told.startswith("data: ") and " images to train on, " in told and "captions" not in told


def test_changed_data_is_reported_at_resume(folder: Path) -> None:
    config, file = CustomConfig(path=str(folder), validation_share=0), folder / "data.json"
    assert record_and_compare(summary(config), file) is None
    assert record_and_compare(summary(config), file) is None
    put(folder, e_png=None, e_txt="four")
    assert str(record_and_compare(summary(config), file)).startswith(
        "the data set has changed since this run began: it had 4 images to train on, now 5"
    )
    (folder / "e.png").rename(folder / "f.png")
    (folder / "e.txt").rename(folder / "f.txt")
    assert "it had 5 images to train on, now 5" in str(record_and_compare(summary(config), file))


@pytest.mark.parametrize("content", ["", '{"training": 4', "[]"])
def test_damaged_summary_is_said_and_replaced(content: str, folder: Path) -> None:
    config, file = CustomConfig(path=str(folder), validation_share=0), folder / "data.json"
    file.write_text(content)
    assert "data.json is damaged: whether the data set has changed" in str(record_and_compare(summary(config), file))
    assert record_and_compare(summary(config), file) is None
