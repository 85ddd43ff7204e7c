"""Accuracy of a zero-shot classifier on images with known classes.

Shapes: N images, L labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dalle.apps.embed import Records, as_record, embed_images
from dalle.apps.zeroshot.classifier import ZeroShotClassifier
from dalle.apps.zeroshot.labels import Labels
from dalle.data.custom.config import CustomConfig
from dalle.data.custom.folder import image_files
from dalle.data.custom.open_source import open_source
from dalle.data.custom.records import IndexedRecords, Record
from dalle.data.drawings import DrawingsConfig, DrawingsDataset
from dalle.data.drawings.captions import GROUPS, STYLES
from dalle.evaluation import metrics

EMOJI = "emoji"  # in place of a folder or file: the embedded data set
_EMOJI_LABELS: dict[str, dict[str, tuple[str, ...]]] = {
    "style": {style: words["en"] for style, words in STYLES.items()},
    "group": GROUPS,
}
_EMOJI_SIZE = 128  # pixels, as stored
_EMOJI_TEMPLATES = {"style": "style-en", "group": "emoji-en"}


@dataclass(frozen=True)
class LabeledImages:
    """Images with their classes.

    Attributes:
        records: N images.
        classes: the class of each; None where the data does not have one.
        labels: the classes that occur, with their synonyms.
        templates: name of a set of templates that suits them.
    """

    records: Records
    classes: list[str | None]
    labels: Labels
    templates: str


@dataclass(frozen=True)
class ClassificationResult:
    """The accuracy of a classifier on a data set.

    Attributes:
        metrics: "top_1", "top_5" (with more than 5 labels) and "mean_per_class" (the accuracy averaged over classes),
            all in [0, 1]; and "images", the number of images.
        confusion: int64 [L, L], number of images of each class (row) by predicted label (column).
        skipped: images that could not be used, with the reason.
    """

    metrics: dict[str, Any]
    confusion: Tensor
    skipped: list[str]


def open_labeled_images(
    source: str, by: str | None = None, split: str | None = None, image: str | None = None
) -> LabeledImages:
    """Open images with their classes.

    Args:
        source: a folder with a subfolder for each class; Parquet files or a data set of the hub; or "emoji", the
            embedded images.
        by: for a table, the column with the class ("label" if None); for emoji, "style" ("style" if None) or "group".
        split: for a data set of the hub ("train" if None) or emoji ("test_pair" if None).
        image: for a table, the column with images; None: found by its name.

    Raises:
        ValueError: the source does not exist, or it has no classes.
    """
    if source == EMOJI:
        return _emoji(by or "style", split or "test_pair")
    if by is None and Path(source).expanduser().is_dir():
        return _folder(Path(source).expanduser())
    rows = open_source(CustomConfig(path=source, image=image, caption=by or "label"), source, split or "train").rows()
    return _from_classes(_RecordSequence(rows), [next(iter(rows.captions(row)), None) for row in range(len(rows))])


def evaluate_classifier(
    classifier: ZeroShotClassifier,
    data: LabeledImages,
    batch_size: int = 64,
    workers: int = 0,
    progress: Callable[[int], object] | None = None,
) -> ClassificationResult:
    """Classify images with known classes.

    Args:
        classifier: its labels must include all classes of the data.
        data: the images.
        batch_size: images at a time; the metrics do not depend on it.
        workers: processes that read images; 0 reads them in this one.
        progress: called with the number of images of each batch.

    Raises:
        ValueError: a class is no label of the classifier, or no image can be used.
    """
    label_ids = {label: number for number, label in enumerate(classifier.labels)}
    missing = [name for name in dict.fromkeys(data.classes) if name is not None and name not in label_ids]
    if missing:
        raise ValueError(f"class {missing[0]!r} is not among the {len(label_ids)} labels: name every class of the data")
    rows, ids, skipped = [], [], []
    for batch in embed_images(classifier.clip, data.records, batch_size, workers):
        skipped += [str(error) for error in batch.broken.values()]
        for number, row in zip(batch.numbers, classifier.probabilities(batch.vectors), strict=True):
            name = data.classes[number]
            if name is None:
                skipped.append(f"{data.records[number].key}: it has no class")
            else:
                rows.append(row)
                ids.append(label_ids[name])
        if progress is not None:
            progress(len(batch.numbers) + len(batch.broken))
    if not rows:
        raise ValueError(f"no usable image to classify: {skipped[0] if skipped else 'there are none'}")
    probabilities, targets = torch.stack(rows), torch.tensor(ids)  # [N, L], [N]
    confusion = metrics.confusion(probabilities.argmax(1), targets, len(label_ids))
    result = metrics.accuracy(probabilities, targets, (1, 5) if len(label_ids) > 5 else (1,))
    occurs = confusion.sum(1) > 0  # a label without images has no accuracy
    result["mean_per_class"] = (confusion.diagonal()[occurs] / confusion.sum(1)[occurs]).mean().item()
    return ClassificationResult(result | {"images": len(targets)}, confusion, skipped)


def _emoji(by: str, split: str) -> LabeledImages:
    if by not in _EMOJI_LABELS:
        raise ValueError(f"emoji have no classes by {by!r}: choose from {', '.join(_EMOJI_LABELS)}")
    pairs = DrawingsDataset(DrawingsConfig(sets=("emoji",)), split, _EMOJI_SIZE)
    names = pairs.styles if by == "style" else pairs.groups
    records = [
        as_record(Image.fromarray(pairs.pair(index, 0).image), pairs.canonical_caption(index))
        for index in range(len(pairs))
    ]
    return LabeledImages(records, list(names), _EMOJI_LABELS[by], _EMOJI_TEMPLATES[by])


def _folder(root: Path) -> LabeledImages:
    records = image_files(root)
    parts = [Path(record.key).relative_to(root).parts for record in records]
    outside = next((record.key for record, path in zip(records, parts, strict=True) if len(path) == 1), None)
    if outside is not None:
        raise ValueError(f"{outside} lies in no subfolder: expected {root}/CLASS/IMAGE, a subfolder for each class")
    return _from_classes(records, [path[0] for path in parts])


def _from_classes(records: Records, classes: list[str | None]) -> LabeledImages:
    names = sorted(Counter(name for name in classes if name is not None))
    if not names:
        raise ValueError("no image has a class: expected a name, or a number of a class that has one")
    return LabeledImages(records, classes, {name: (name.replace("_", " "),) for name in names}, "images-en")


class _RecordSequence:
    """Indexed records as the sequence that `embed_images` reads."""

    def __init__(self, rows: IndexedRecords):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Record:
        return self.rows.record(number)
