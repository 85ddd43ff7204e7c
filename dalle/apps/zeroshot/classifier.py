"""Zero-shot classification: image embeddings against a text embedding for each label (CLIP paper, section 3.1).

Shapes: L labels, B images, D dimensions of the embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from dalle.apps.embed import embed_images
from dalle.apps.zeroshot.calibration import Calibration, calibration_beside, read_calibration
from dalle.apps.zeroshot.labels import Labels, synonyms_of
from dalle.checkpoints.hub import SHIPPED
from dalle.checkpoints.load import load_clip
from dalle.data.base import BadRecord
from dalle.data.custom.records import ImageLike, Records, as_record
from dalle.device import pick_device
from dalle.evaluation.templates import templates_of
from dalle.evaluation.zero_shot import LabelScores
from dalle.files import expand_home
from dalle.models.clip import CLIP

NULL_WORDS = (
    *("person", "animal", "plant", "food", "drink", "building", "vehicle", "tool", "furniture", "clothing"),
    *("toy", "machine", "landscape", "sky", "water", "text", "sign", "symbol", "pattern", "something else"),
)
"""Labels for everything else: beside them, what the labels do not get is the probability of none."""

DOUBTFUL = 0.9
"""Calibrated probability of none above which the built-in CLIP was probably given no label that fits (docs/log.md)."""


@dataclass(frozen=True)
class Prediction:
    """Labels of an image, the most probable first."""

    image: str  # path or name
    labels: list[str]  # with a threshold, those that reach it, perhaps none
    probabilities: list[float]  # in [0, 1]; they sum to 1 over all labels, except those of a SigLIP
    none: float | None = None  # where asked for: the probability that no label fits, beside words for other things


def check_answer(top: int | None, threshold: float | None) -> None:
    """Check how many labels are asked for, and how probable.

    Raises:
        ValueError: fewer than 1 label, or no probability.
    """
    if top is not None and top < 1:
        raise ValueError(f"top is {top}: ask for 1 label at least")
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold:g}: give a probability, from 0 to 1")


class ZeroShotClassifier:
    """Classifies images by labels given as text, without training.

    The embedding of a label is the normalized mean of the unit embeddings of its prompts: the prompt ensembling of the
    CLIP paper (Radford et al. 2021, section 3.1.4). The prompts are every template filled with every synonym of the
    label. Probabilities are the softmax over labels of cosines times CLIP's learned scale; a SigLIP gives each label a
    probability of its own. Words that are subclasses of their label rather than synonyms are scored one by one
    (`LabelScores`).

    Attributes:
        clip: the CLIP.
        labels: L names, in the order in which they were given.
        templates: prompt templates.
        scores: the labels' vectors, and what images score with them.
    """

    def __init__(
        self,
        clip: CLIP,
        labels: Labels,
        templates: str | Sequence[str] = "images-en",
        calibration: Calibration | Callable[[], Calibration | None] | None = None,
        subclasses: bool = False,
    ):
        """Embed the labels.

        Args:
            clip: the CLIP.
            labels: see `from_pretrained`.
            templates: see `from_pretrained`.
            calibration: makes the probability of none, or reads what does once it is needed.
            subclasses: see `from_pretrained`.
        """
        synonyms = synonyms_of(labels)
        self._calibration = calibration
        self.clip, self.labels, self.templates = clip, list(synonyms), templates_of(templates)
        self.scores = LabelScores(clip, synonyms, self.templates, subclasses)

    @classmethod
    def from_pretrained(
        cls,
        labels: Labels,
        source: str | Path | None = None,
        templates: str | Sequence[str] | None = None,
        device: str = "auto",
        calibration: str | Path | None = None,
        subclasses: bool = False,
    ) -> ZeroShotClassifier:
        """Load a CLIP and embed the labels.

        Args:
            labels: at least two names, in any language that the CLIP reads; or a mapping from names to synonyms.
            source: file or folder of a CLIP, or hub id, ours or as published; None: the built-in one.
            templates: name of a set (`dalle.apps.zeroshot.TEMPLATES`), several with commas, or templates with {} for
                the label; None: "emoji-en" with the built-in CLIP, "images-en" with another.
            device: "auto" takes an accelerator if there is one.
            calibration: file of `dalle eval classify --calibrate`, for the probability of none; None: calibration.json
                in the folder of the CLIP, if it has one.
            subclasses: whether the words of a label are kinds of it ("animal" -> "dog", "cat"), of which an image need
                fit one; else they are synonyms, which are averaged.

        Raises:
            ValueError: there is no such CLIP or set of templates, labels or templates are malformed, or the calibration
                given is of another CLIP.
        """
        synonyms_of(labels)  # errors before loading, which takes longer
        chosen = templates_of(("emoji-en" if source is None else "images-en") if templates is None else templates)
        place = SHIPPED / "clip" if source is None else source
        clip = load_clip(place, pick_device(device))
        if calibration is None:
            # Only once it is needed: one that is out of date is no obstacle to fitting another, or to labels alone
            return cls(clip, labels, chosen, partial(calibration_beside, place, clip), subclasses)
        return cls(clip, labels, chosen, read_calibration(expand_home(calibration), clip), subclasses)

    def __call__(
        self,
        images: ImageLike | Sequence[ImageLike],
        top: int | None = None,
        batch_size: int = 64,
        threshold: float | None = None,
        with_none: bool = False,
    ) -> list[Prediction]:
        """Classify images: paths, bytes of files, or PIL images.

        Args:
            images: one or several.
            top: number of labels for each image; None: all.
            batch_size: images at a time.
            threshold: see `predict`.
            with_none: see `predict`.

        Raises:
            ValueError: `top` is below 1, `threshold` is no probability, or an image cannot be read
                (`dalle.data.base.BadRecord`).
        """
        several = [images] if isinstance(images, ImageLike) else list(images)
        records = [as_record(image, f"image {number}") for number, image in enumerate(several, 1)]
        results = []
        for result in self.predict(records, top, batch_size, threshold=threshold, with_none=with_none):
            if isinstance(result, BadRecord):
                raise result
            results.append(result)
        return results

    def predict(
        self,
        records: Records,
        top: int | None = None,
        batch_size: int = 64,
        workers: int = 0,
        threshold: float | None = None,
        with_none: bool = False,
    ) -> Iterator[Prediction | BadRecord]:
        """Classify records while they are read; yields in place of a broken one the reason.

        Args:
            records: what to read, for example `dalle.data.custom.folder.image_files("photos/")`.
            top: number of labels for each image; None: all.
            batch_size: images at a time.
            workers: processes that read images; 0 reads them in this one.
            threshold: only labels of at least this probability, in [0, 1], perhaps none. A softmax cannot tell that no
                label fits, so `NULL_WORDS` are then added to the labels, and their probability is that of none, by
                `calibration`. A SigLIP does not need them.
            with_none: whether to give the probability of none without a threshold, too; those of the labels stay as
                they are without it.

        Raises:
            ValueError: a number is out of range.
        """
        check_answer(top, threshold)
        for batch in embed_images(self.clip, records, batch_size, workers):
            results: dict[int, Prediction | BadRecord] = dict(batch.broken)
            probabilities = self.probabilities(batch.vectors, with_none=threshold is not None)
            # A stable sort: labels of equal probability keep the order in which they were given
            best = probabilities[:, : len(self.labels)].sort(dim=-1, descending=True, stable=True)
            ids, values = best.indices[:, :top].tolist(), best.values[:, :top].tolist()
            none = [None] * len(ids)
            if threshold is not None or with_none:
                none = self.probabilities(batch.vectors, with_none=True)[:, -1].tolist()
            for row, number in enumerate(batch.numbers):
                count = len(values[row]) if threshold is None else sum(value >= threshold for value in values[row])
                names = [self.labels[label] for label in ids[row][:count]]
                results[number] = Prediction(records[number].key, names, values[row][:count], none[row])
            yield from (results[number] for number in sorted(results))

    @torch.inference_mode()
    def probabilities(self, image_embeds: Tensor, with_none: bool = False) -> Tensor:
        """Probabilities of the labels.

        Args:
            image_embeds: unit embeddings of images [B, D].
            with_none: whether to add a last column, the probability that no label fits.

        Returns:
            float32 [B, L], or [B, L + 1] with none. Rows sum to 1, except with a SigLIP: its labels have independent
            probabilities, and none is that all of them are wrong.
        """
        if self.clip.config.sigmoid:
            of_labels = self.scores.probabilities(image_embeds)
            none = (1 - of_labels).prod(dim=-1, keepdim=True)
            return torch.cat([of_labels, none], dim=-1) if with_none else of_labels
        if not with_none:
            return self.scores.logits(image_embeds).softmax(dim=-1)
        return self.calibration.probabilities(*self.logits(image_embeds))

    def logits(self, image_embeds: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines times the CLIP's scale: with the labels float32 [B, L], and with the null words [B, W]."""
        return self.scores.logits(image_embeds), self._null_scores.logits(image_embeds)

    @cached_property
    def calibration(self) -> Calibration:
        """Makes the probability of none; without one, it is that of the null words in an uncalibrated softmax.

        Raises:
            ValueError: it has to be read first, and is damaged, or was fitted to another CLIP.
        """
        found = self._calibration() if callable(self._calibration) else self._calibration
        return found or Calibration()

    @cached_property
    def _null_scores(self) -> LabelScores:
        """Scores of `NULL_WORDS`, without those that are labels; one at least, or none could not have a probability."""
        labels = {name.casefold() for name in self.labels}
        words = [word for word in NULL_WORDS if word not in labels] or NULL_WORDS[-1:]
        return LabelScores(self.clip, {word: (word,) for word in words}, self.templates)
