"""Accuracy on labeled images: folders, tables with names or numbers of classes, the emoji; the confusion image."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dalle.apps.clip_report import Source
from dalle.apps.zeroshot import ZeroShotClassifier
from dalle.apps.zeroshot.accuracy import evaluate_classifier
from dalle.apps.zeroshot.confusion import confusion_image
from dalle.data.drawings import DrawingsConfig, DrawingsDataset
from dalle.data.drawings.captions import STYLES, canonical_caption
from dalle.data.labeled import open_labeled_images
from dalle.models.clip import CLIP


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(9):
        file = tmp_path / "photos" / ("red_heart", "star", "दिल")[number % 3] / "deep" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((12, 12), 20 * number + 1).convert("RGB").save(file)
    return tmp_path / "photos"


def test_folders_with_a_subfolder_per_class_are_read(tiny_clip: CLIP, photos: Path) -> None:
    (photos / "star" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    data = open_labeled_images(str(photos))
    assert data.labels == {"red_heart": ("red heart",), "star": ("star",), "दिल": ("दिल",)}
    classifier = ZeroShotClassifier(tiny_clip, data.labels, ["a {}"])
    counts: list[int] = []
    result = evaluate_classifier(classifier, data, batch_size=4, progress=counts.append)
    correct = []
    for file in sorted(photos.rglob("*.png")):
        (prediction,) = classifier(file)
        correct.append(prediction.labels[0] == file.relative_to(photos).parts[0])
    assert result.metrics["top_1"] == pytest.approx(np.mean(correct)) and result.metrics["images"] == 9
    assert result.confusion.sum() == 9 and result.confusion.diagonal().sum() == sum(correct)
    assert result.confusion.sum(1).tolist() == [3, 3, 3]
    assert sum(counts) == 10 and len(result.skipped) == 1 and "broken.jpg" in result.skipped[0]


def test_a_folder_without_the_column_that_is_asked_for_says_how_its_subfolders_become_classes(photos: Path) -> None:
    with pytest.raises(ValueError, match=r"NAME\.kind.*; if its subfolders are the classes, leave out --by$"):
        open_labeled_images(str(photos), by="kind")


def test_tables_with_class_names_or_numbers_are_read(tmp_path: Path) -> None:
    import datasets

    images = []
    for number in range(4):
        buffer = io.BytesIO()
        Image.new("RGB", (5, 5), (number, 0, 0)).save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue(), "path": None})
    columns = {"image": images, "kind": ["a", "b", "b", "a"], "label": [1, 0, -1, 1]}
    features = datasets.Features(
        image=datasets.Image(), kind=datasets.Value("string"), label=datasets.ClassLabel(names=["cat", "dog"])
    )
    file = tmp_path / "table.parquet"
    datasets.Dataset.from_dict(columns, features=features).to_parquet(file)
    assert open_labeled_images(str(file), by="kind").classes == ["a", "b", "b", "a"]
    assert open_labeled_images(str(file)).classes == ["dog", "cat", None, "dog"]
    with pytest.raises(ValueError, match="has no column 'sort'"):
        open_labeled_images(str(file), by="sort")


def test_emoji_are_labeled_by_style_group_or_name() -> None:
    pairs = DrawingsDataset(DrawingsConfig(sets=("emoji",)), "test_block", 128)
    by_style, by_group = (open_labeled_images("emoji", by, "test_block") for by in ("style", "group"))
    assert by_style.classes == pairs.styles and by_group.classes == pairs.groups
    assert len(by_style.labels) == 7 and len(by_group.labels) == 8 and set(pairs.groups) <= set(by_group.labels)
    assert by_group.subclasses and not by_style.subclasses
    # Told by what the training split shows, and by no other name
    train = DrawingsDataset(DrawingsConfig(sets=("emoji",)), "train", 128)
    known = {concept.names["en"]: group for concept, group in zip(train.concepts, train.groups, strict=True)}
    assert {word: group for group, words in by_group.labels.items() for word in words} == known
    assert "a grinning face, {} style" in by_style.templates and 60 <= len(by_style.templates) <= 80
    captions = {canonical_caption(c, STYLES[s]) for c, s in zip(train.concepts, train.styles, strict=True)}
    noto = [template.replace("{}", *by_style.labels["noto"]) for template in by_style.templates]
    assert len(captions.intersection(noto)) > 0.9 * len(noto)
    by_name = open_labeled_images("emoji", "name", "test_block")
    assert by_name.classes == [concept.names["en"] for concept in pairs.concepts]
    assert set(by_name.labels) == set(by_name.classes) and all(words == (n,) for n, words in by_name.labels.items())
    with pytest.raises(ValueError, match="no classes by 'color'"):
        open_labeled_images("emoji", "color")


def test_sources_without_labels_are_refused(tiny_clip: CLIP, photos: Path, tmp_path: Path) -> None:
    classifier = ZeroShotClassifier(tiny_clip, ["star", "दिल"])
    with pytest.raises(ValueError, match="class 'red_heart' is not among the 2 labels"):
        evaluate_classifier(classifier, open_labeled_images(str(photos)))
    (photos / "loose.png").write_bytes(b"")
    with pytest.raises(ValueError, match="lies in no subfolder"):
        open_labeled_images(str(photos))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no images"):
        open_labeled_images(str(tmp_path / "empty"))
    for name in ("split", "image"):
        with pytest.raises(ValueError, match=f"{name}=x is for tables and data sets of the hub, and the subfolders of"):
            open_labeled_images(str(photos), **{name: "x"})
    with pytest.raises(ValueError, match="image=x is a column of a table, and emoji are none"):
        open_labeled_images("emoji", image="x")
    for name in ("image", "caption"):
        with pytest.raises(ValueError, match=f"{name}=x is a column of a table, and emoji are none"):
            Source("emoji", **{name: "x"})


@pytest.mark.parametrize("classes", [2, 8, 300])
def test_confusion_image_is_darkest_at_the_largest_count(classes: int) -> None:
    counts = torch.eye(classes, dtype=torch.int64) * 9
    counts[0] = 0
    counts[0, 1] = 5
    image = np.asarray(confusion_image(counts, [f"दिल {n}" if n % 2 else f"class {n}" for n in range(classes)]))
    rows, columns = np.nonzero((image == (32, 84, 160)).all(-1))
    side = rows.max() - rows.min() + 1  # of all classes
    cell = round(side / classes)
    assert abs(columns.max() - columns.min() + 1 - (side - cell)) <= 3  # its column
    assert columns[rows == rows.min()].max() < columns.min() + cell
