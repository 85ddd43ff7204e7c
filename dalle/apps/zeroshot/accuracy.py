"""Accuracy of a zero-shot classifier on images with known classes.

Shapes: N images, L labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dalle.apps.embed import embed_images
from dalle.apps.zeroshot.classifier import ZeroShotClassifier
from dalle.data.labeled import LabeledImages
from dalle.evaluation import metrics


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
    result = metrics.classification(probabilities, targets) | {"images": len(targets)}
    return ClassificationResult(result, confusion, skipped)
