"""Images whose class is known, and how many of them a classifier puts there.

Letters: N images, L labels.
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

EMOJI = "emoji"  # stands for the embedded data set where a folder or a file is asked for
_EMOJI_LABELS: dict[str, dict[str, tuple[str, ...]]] = {
    "style": {style: words["en"] for style, words in STYLES.items()},
    "group": GROUPS,
}
_SIDE = 128  # pixels of the stored images
_SETS = {"style": "style-en", "group": "emoji-en"}


@dataclass(frozen=True)
class Labelled:
    """Images with their classes.

    Attributes:
        records: N images.
        classes: class of each; None where the data does not say.
        labels: the classes that there are, with the words that they go by.
        templates: name of the set of templates that suits them.
    """

    records: Records
    classes: list[str | None]
    labels: Labels
    templates: str


@dataclass(frozen=True)
class Accuracy:
    """How well a classifier does.

    Attributes:
        figures: "top_1", "top_5" (of more than 5 labels) and "mean_per_class", the mean of the classes' own shares that
            are found, all in [0, 1]; and "images", how many were looked at.
        counts: int64 [L, L], images of each class (row) by the label that they were given (column).
        broken: what could not be used, with the reason.
    """

    figures: dict[str, Any]
    counts: Tensor
    broken: list[str]


def labelled_images(source: str, by: str | None = None, split: str | None = None, image: str | None = None) -> Labelled:
    """Images with their classes.

    Args:
        source: a folder with a subfolder for each class; parquet files or a data set of the hub; or "emoji", the
            embedded images.
        by: of a table the column with the class, a name or a number that has one; of the emoji "style" or "group".
        split: of the hub's sets ("train" if None), or of the emoji ("test_pair").
        image: of a table the column with images; None: one of the usual names.

    Raises:
        ValueError: nothing is there, or it does not tell classes.
    """
    if source == EMOJI:
        return _emoji(by or "style", split or "test_pair")
    if by is None and Path(source).expanduser().is_dir():
        return _folder(Path(source).expanduser())
    rows = open_source(CustomConfig(path=source, image=image, caption=by or "label"), source, split or "train").rows()
    return _labelled(_Numbered(rows), [next(iter(rows.captions(row)), None) for row in range(len(rows))])


def accuracy_on(
    classifier: ZeroShotClassifier,
    data: Labelled,
    batch_size: int = 64,
    workers: int = 0,
    progress: Callable[[int], object] | None = None,
) -> Accuracy:
    """Classify images whose classes are known.

    Args:
        classifier: its labels must be the classes of the data, and may be more.
        data: the images.
        batch_size: images at a time; the figures do not depend on it.
        workers: processes that read images.
        progress: told after each batch of how many images it was.

    Raises:
        ValueError: a class is no label of the classifier, or no image can be used.
    """
    number_of = {label: number for number, label in enumerate(classifier.labels)}
    missing = [name for name in dict.fromkeys(data.classes) if name is not None and name not in number_of]
    if missing:
        raise ValueError(f"class {missing[0]!r} is not among the {len(number_of)} labels: name every class of the data")
    scores, targets, broken = [], [], []
    for batch in embed_images(classifier.clip, data.records, batch_size, workers):
        broken += [str(error) for error in batch.broken.values()]
        probabilities = classifier.probabilities(batch.vectors)
        for number, row in zip(batch.numbers, probabilities, strict=True):
            name = data.classes[number]
            if name is None:
                broken.append(f"{data.records[number].key}: its class is not told")
            else:
                scores.append(row)
                targets.append(number_of[name])
        if progress is not None:
            progress(len(batch.numbers) + len(batch.broken))
    if not scores:
        raise ValueError(f"no usable image to classify: {broken[0] if broken else 'there are none'}")
    of_all, right = torch.stack(scores), torch.tensor(targets)  # [N, L], [N]
    counts = metrics.confusion(of_all.argmax(1), right, len(number_of))
    there = counts.sum(1) > 0
    figures = metrics.accuracy(of_all, right, (1, 5) if len(number_of) > 5 else (1,))
    figures["mean_per_class"] = (counts.diagonal()[there] / counts.sum(1)[there]).mean().item()
    return Accuracy(figures | {"images": len(right)}, counts, broken)


def _emoji(by: str, split: str) -> Labelled:
    if by not in _EMOJI_LABELS:
        raise ValueError(f"the emoji are not told apart by {by!r}: choose from {', '.join(_EMOJI_LABELS)}")
    pairs = DrawingsDataset(DrawingsConfig(sets=("emoji",)), split, _SIDE)
    names = pairs.styles if by == "style" else pairs.groups
    records = [
        as_record(Image.fromarray(pairs.pair(index, 0).image), pairs.canonical_caption(index))
        for index in range(len(pairs))
    ]
    return Labelled(records, list(names), _EMOJI_LABELS[by], _SETS[by])


def _folder(root: Path) -> Labelled:
    records = image_files(root)
    parts = [Path(record.key).relative_to(root).parts for record in records]
    loose = next((record.key for record, own in zip(records, parts, strict=True) if len(own) == 1), None)
    if loose is not None:
        raise ValueError(f"{loose} lies in no subfolder: expected {root}/CLASS/IMAGE, a subfolder for each class")
    return _labelled(records, [own[0] for own in parts])


def _labelled(records: Records, classes: list[str | None]) -> Labelled:
    names = sorted(Counter(name for name in classes if name is not None))
    if not names:
        raise ValueError("no image has a class: expected a name, or a number of a class that has one")
    return Labelled(records, classes, {name: (name.replace("_", " "),) for name in names}, "images-en")


class _Numbered:
    """Rows as a sequence."""

    def __init__(self, rows: IndexedRecords):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Record:
        return self.rows.record(number)
