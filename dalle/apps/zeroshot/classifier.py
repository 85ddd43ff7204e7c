"""Images to labels: CLIP's image tower against a text vector for each label (CLIP paper, section 3.1).

Letters: L labels, K templates, B images, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from dalle.apps.embed import embed_images
from dalle.apps.zeroshot.labels import Labels, words_of
from dalle.checkpoints.hub import SHIPPED
from dalle.checkpoints.load import load_clip
from dalle.data.base import BadRecord
from dalle.data.custom.records import ImageLike, Records, as_record
from dalle.device import pick_device
from dalle.evaluation.templates import templates_of
from dalle.evaluation.zero_shot import label_embeds
from dalle.models.clip import CLIP

NULL_WORDS = (
    *("person", "animal", "plant", "food", "drink", "building", "vehicle", "tool", "furniture", "clothing"),
    *("toy", "machine", "landscape", "sky", "water", "text", "sign", "symbol", "pattern", "something else"),
)
"""What stands for everything that is no label."""


@dataclass(frozen=True)
class Prediction:
    """What an image shows, the likeliest first."""

    image: str  # its path, or what it is called
    labels: list[str]  # with a threshold those that reach it, perhaps none
    probabilities: list[float]  # in [0, 1]; of all labels together they are 1, but of a SigLIP each stands alone
    none: float | None = None  # with a threshold: how likely it is that no label fits


class ZeroShotClassifier:
    """Puts images to labels that are only named.

    A label's vector is the mean of the unit vectors of its sentences, normalised again: the prompt ensembling of the
    CLIP paper (Radford et al. 2021, section 3.1.4). The sentences are every template filled with every word that the
    label goes by. Probabilities are the softmax over labels of cosines times CLIP's learnt scale; a SigLIP judges
    each label by itself.

    Attributes:
        clip: the CLIP.
        labels: L names, in the order in which they were given.
        templates: the sentences that they are put into.
        label_embeds: float32 [L, D], unit length.
    """

    def __init__(self, clip: CLIP, labels: Labels, templates: str | Sequence[str] = "images-en"):
        words = words_of(labels)
        self.clip, self.labels, self.templates = clip, list(words), templates_of(templates)
        self.label_embeds = label_embeds(clip, list(words.values()), self.templates)

    @classmethod
    def from_pretrained(
        cls,
        labels: Labels,
        source: str | Path | None = None,
        templates: str | Sequence[str] | None = None,
        device: str = "auto",
    ) -> ZeroShotClassifier:
        """Load a CLIP and embed the labels.

        Args:
            labels: at least two names, in any language that the CLIP reads; or name -> words that it goes by.
            source: file or folder of a CLIP, or hub id, ours or as published; None is the one that ships.
            templates: name of a set (`dalle.apps.zeroshot.TEMPLATES`), several with commas, or sentences with {} for
                the label; None: "emoji-en" with the CLIP that ships, "images-en" with another.
            device: "auto" takes an accelerator if there is one.

        Raises:
            ValueError: no such CLIP or set, or labels or templates that are not what they should be.
        """
        words_of(labels)  # before the loading, which takes longer
        chosen = templates_of(templates or ("emoji-en" if source is None else "images-en"))
        clip = load_clip(SHIPPED / "clip" if source is None else source, pick_device(device))
        return cls(clip, labels, chosen)

    def __call__(
        self,
        images: ImageLike | Sequence[ImageLike],
        top: int | None = None,
        batch_size: int = 64,
        threshold: float | None = None,
    ) -> list[Prediction]:
        """Classify images: paths, files' bytes, or Pillow's.

        Args:
            images: one or several.
            top: how many labels each; None: all.
            batch_size: images at a time.
            threshold: see `predict`.

        Raises:
            ValueError: `top` is below 1, `threshold` is no probability, or an image cannot be read
                (`dalle.data.base.BadRecord`).
        """
        several = [images] if isinstance(images, ImageLike) else list(images)
        records = [as_record(image, f"image {number}") for number, image in enumerate(several, 1)]
        results = []
        for result in self.predict(records, top, batch_size, threshold=threshold):
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
    ) -> Iterator[Prediction | BadRecord]:
        """Classify many records as they are read, each to a prediction, or to why it could not be read.

        Args:
            records: what to read, for example `dalle.data.custom.folder.image_files("photos/")`.
            top: how many labels each; None: all.
            batch_size: images at a time.
            workers: processes that read images; 0 reads them in this one.
            threshold: only labels of at least this probability, in [0, 1], perhaps none. A SigLIP's labels are judged
                one by one. The softmax of another CLIP knows only which of the labels fits best, so `NULL_WORDS` then
                stand beside them, and what they get is the probability of none.

        Raises:
            ValueError: a number is out of range.
        """
        if top is not None and top < 1:
            raise ValueError(f"top is {top}: ask for 1 label at least")
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"threshold is {threshold:g}: give a probability, from 0 to 1")
        for batch in embed_images(self.clip, records, batch_size, workers):
            results: dict[int, Prediction | BadRecord] = dict(batch.broken)
            whole = self.probabilities(batch.vectors, beside_none=threshold is not None)
            best = whole[:, : len(self.labels)].sort(dim=-1, descending=True, stable=True)
            rows = zip(batch.numbers, best.indices[:, :top].tolist(), best.values[:, :top].tolist(), whole, strict=True)
            for number, order, values, row in rows:
                kept = len(values) if threshold is None else sum(value >= threshold for value in values)
                names = [self.labels[label] for label in order[:kept]]
                none = None if threshold is None else float(row[-1])
                results[number] = Prediction(records[number].key, names, values[:kept], none)
            yield from (results[number] for number in sorted(results))

    @torch.inference_mode()
    def probabilities(self, image_embeds: Tensor, beside_none: bool = False) -> Tensor:
        """How likely each label is.

        Args:
            image_embeds: Unit vectors of images [B, D].
            beside_none: Whether one column more, the last, says how likely it is that none of them fits.

        Returns:
            float32 [B, L], each row 1 in all; of a SigLIP each label by itself, and none is that all of them fail, as
            if they were independent.
        """
        cosines = image_embeds @ self.label_embeds.T
        if self.clip.config.sigmoid:
            found = self.clip.probabilities(cosines)
            return torch.cat([found, (1 - found).prod(dim=-1, keepdim=True)], dim=-1) if beside_none else found
        if beside_none:
            cosines = torch.cat([cosines, image_embeds @ self._null_embeds.T], dim=-1)
        found = (self.clip.scale.cpu().float() * cosines).softmax(dim=-1)
        if not beside_none:
            return found
        own = len(self.labels)
        return torch.cat([found[:, :own], found[:, own:].sum(dim=-1, keepdim=True)], dim=-1)

    @cached_property
    def _null_embeds(self) -> Tensor:
        """Vectors of what an image may show besides; float32 [number of words, D]."""
        names = {name.casefold() for name in self.labels}
        words = [(word,) for word in NULL_WORDS if word not in names]
        return label_embeds(self.clip, words, self.templates)
