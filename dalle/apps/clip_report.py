"""Metrics of a CLIP on a data set: retrieval by captions, zero-shot classification, linear probe.

Letters: N images, C channels of the image tower.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dalle.apps.embed import embed_images
from dalle.apps.zeroshot.accuracy import evaluate_classifier
from dalle.apps.zeroshot.classifier import ZeroShotClassifier
from dalle.data import DrawingsConfig, PairDataset, open_data
from dalle.data.custom.config import CustomConfig
from dalle.data.labeled import EMOJI, LabeledImages, check_no_columns, open_labeled_images
from dalle.data.loader import evaluation_batches
from dalle.device import device_of
from dalle.evaluation import metrics
from dalle.evaluation.probe import fit_probe, held_out
from dalle.evaluation.zero_shot import embed_texts
from dalle.models.clip import CLIP

OnImages = Callable[[int], object]
"""Called after each batch with the number of its images."""
Metrics = dict[str, float]


@dataclass(frozen=True)
class Source:
    """Images to evaluate on.

    Attributes:
        path: a folder, Parquet files, a hub id, or "emoji".
        by: column with the class; None: label. Of emoji, style or group.
        image: column with images; None: found by name.
        caption: column with captions; None: found by name.
        split: of a hub id or of emoji; None: train and test_pair.

    Raises:
        ValueError: a column of emoji is named.
    """

    path: str
    by: str | None = None
    image: str | None = None
    caption: str | None = None
    split: str | None = None

    def __post_init__(self) -> None:
        check_no_columns(self.path, image=self.image, caption=self.caption)

    def labeled(self) -> LabeledImages:
        """Its images with their classes.

        Raises:
            ValueError: nothing is there, or it does not tell classes.
        """
        return open_labeled_images(self.path, self.by, self.split, self.image)

    def captioned(self, image_size: int) -> PairDataset:
        """Its images with their captions.

        Raises:
            ValueError: nothing is there, or it has no captions.
        """
        if self.path == EMOJI:
            return open_data(DrawingsConfig(sets=("emoji",)), self.split or "test_pair", image_size)
        split = self.split or "train"
        # All of it is evaluated, none held out: the split names itself as its validation split
        whole = CustomConfig(
            path=self.path, image=self.image, caption=self.caption, split=split, validation_split=split
        )
        return open_data(whole, "validation", image_size)


@dataclass
class EmbeddedImages:
    """Features of labeled images.

    Attributes:
        features: float32 [N, C], the image tower's output before its projection.
        names: class of each.
        broken: what could not be used, with the reason.
    """

    features: Tensor
    names: list[str]
    broken: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Report:
    """Results.

    Attributes:
        metrics: "retrieval", "zero_shot" and "probe" -> their metrics, as far as the data set allows.
        left_out: which of them are missing -> why.
        broken: images that could not be used, with the reason.
    """

    metrics: dict[str, Metrics]
    left_out: dict[str, str]
    broken: list[str]


def features_of(
    clip: CLIP, data: LabeledImages, batch_size: int = 64, workers: int = 0, progress: OnImages | None = None
) -> EmbeddedImages:
    """Features of labeled images, as linear probes take them: not projected, not normalized.

    Raises:
        ValueError: no image can be used.
    """
    parts, names, broken = [], [], []
    for batch in embed_images(clip, data.records, batch_size, workers, clip.pooled_image):
        broken += [str(error) for error in batch.broken.values()]
        for number, vector in zip(batch.numbers, batch.vectors, strict=True):
            name = data.classes[number]
            if name is None:
                broken.append(f"{data.records[number].key}: it has no class")
            else:
                parts.append(vector)
                names.append(name)
        if progress is not None:
            progress(len(batch.numbers) + len(batch.broken))
    if not parts:
        raise ValueError(f"no usable image to probe: {broken[0] if broken else 'there are none'}")
    return EmbeddedImages(torch.stack(parts), names, broken)


def probe_metrics(train: EmbeddedImages, test: EmbeddedImages | None = None, seed: int = 0) -> Metrics:
    """Accuracy of a linear probe (`dalle.evaluation.probe`).

    Args:
        train: to fit it on.
        test: to measure it on; None holds out a fifth of each class of `train`.
        seed: which images are held out.

    Raises:
        ValueError: a class of `test` is not in `train`, or a class has too few images.
    """
    classes = list(dict.fromkeys(sorted(train.names)))
    number_of = {name: number for number, name in enumerate(classes)}
    new = [name for name in (test.names if test is not None else []) if name not in number_of]
    if new:
        raise ValueError(f"class {new[0]!r} of the test images is not among the {len(classes)} that are trained on")
    # Of each class one image is held out for the strength, and without `test` another to measure
    least = 2 if test is not None else 3
    for name, count in Counter(train.names).items():
        if count < least and len(classes) > 1:
            raise ValueError(
                f"class {name!r} has {count} image{'s' * (count > 1)}: a probe needs at least {least} of each"
            )
    features, targets = train.features, torch.tensor([number_of[name] for name in train.names])
    if test is None:
        kept, held = held_out(targets, seed)
        test_features, test_targets = features[held], targets[held]
        features, targets = features[kept], targets[kept]
    else:
        test_features, test_targets = test.features, torch.tensor([number_of[name] for name in test.names])
    # The validation images are another draw than the test images
    found = fit_probe(features, targets, len(classes), seed + 1)
    scores = metrics.classification(found.classifier.logits(test_features), test_targets)
    return scores | {"strength": found.strength, "train_images": len(targets), "images": len(test_targets)}


@torch.inference_mode()
def retrieval_of(
    clip: CLIP,
    pairs: PairDataset,
    ks: Sequence[int] = (1, 5, 10),
    batch_size: int = 64,
    progress: OnImages | None = None,
) -> tuple[Metrics, list[str]]:
    """Retrieval between the images and first captions of a data set; and what could not be used."""
    images: list[Tensor] = []
    texts: list[Tensor] = []
    broken: list[str] = []
    for batch in evaluation_batches(pairs, batch_size, report=broken.extend):
        images.append(clip.encode_image(batch.unit_images(device_of(clip))).float().cpu())
        texts.append(embed_texts(clip, batch.captions))
        if progress is not None:
            progress(len(batch.captions))
    vectors = torch.cat(images)  # [N, D]
    return metrics.retrieval(vectors, torch.cat(texts), ks) | {"images": len(vectors)}, broken


def clip_report(
    clip: CLIP,
    source: Source,
    test: Source | None = None,
    templates: str | Sequence[str] | None = None,
    batch_size: int = 64,
    workers: int = 0,
    progress: OnImages | None = None,
) -> Report:
    """Everything that the images allow: retrieval if they have captions; zero-shot and a probe if they have classes.

    Args:
        clip: loaded by `dalle.load_clip`.
        source: images to evaluate on.
        test: images to measure the probe on, which is then fitted on all of `source`; None holds out a fifth.
        templates: for zero-shot; None: those that suit the data.
        batch_size: images at a time.
        workers: processes that read images.
        progress: called after each batch with its number of images.

    Raises:
        ValueError: the images have neither captions nor classes, none can be read, or there are no classes by what
            `source.by` asks for.
    """
    found: dict[str, Metrics] = {}
    left_out: dict[str, str] = {}
    broken: list[str] = []
    try:
        pairs = source.captioned(clip.config.image_size)
    except ValueError as error:
        left_out["retrieval"] = str(error)
    else:
        found["retrieval"], broken = retrieval_of(clip, pairs, batch_size=batch_size, progress=progress)
    try:
        data = source.labeled()
    except ValueError as error:
        if source.by is not None or left_out.get("retrieval") == str(error):
            raise
        if left_out:
            raise ValueError(f"{left_out['retrieval']}; nor classes: {error}") from None
        return Report(found, {"zero_shot": str(error), "probe": str(error)}, broken)
    chosen = data.templates if templates is None else templates
    classifier = ZeroShotClassifier(clip, data.labels, chosen, subclasses=data.subclasses)
    accuracy = evaluate_classifier(classifier, data, batch_size, workers, progress)
    found["zero_shot"] = accuracy.metrics
    # The same images, which retrieval names by their paths within the folder
    broken = [*accuracy.skipped, *(one for one in broken if not any(name.endswith(one) for name in accuracy.skipped))]
    try:
        on = None if test is None else features_of(clip, test.labeled(), batch_size, workers, progress)
        found["probe"] = probe_metrics(features_of(clip, data, batch_size, workers, progress), on)
    except ValueError as error:
        left_out["probe"] = str(error)
    return Report(found, left_out, broken)
