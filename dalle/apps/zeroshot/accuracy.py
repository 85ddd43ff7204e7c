"""Images whose class is known, and how many of them a classifier puts there.

Letters: N images, L labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dalle.apps.embed import embed_images
from dalle.apps.zeroshot.classifier import ZeroShotClassifier
from dalle.data.labelled import Labelled
from dalle.evaluation import metrics


@dataclass(frozen=True)
class Accuracy:
    """How well a classifier does.

    Attributes:
        figures: those of `metrics.classification`, and "images", how many were looked at.
        counts: int64 [L, L], images of each class (row) by the label that they were given (column).
        broken: what could not be used, with the reason.
    """

    figures: dict[str, Any]
    counts: Tensor
    broken: list[str]


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
    return Accuracy(metrics.classification(of_all, right) | {"images": len(right)}, counts, broken)
