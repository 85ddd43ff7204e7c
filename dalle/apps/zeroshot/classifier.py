"""Pictures to labels: CLIP's image tower against a text vector for each label (CLIP paper, section 3.1).

Letters: L labels, K templates, B pictures, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dalle.apps.embed import ImageLike, Records, as_record, embed_pictures, embed_texts
from dalle.apps.zeroshot.labels import Labels, words_of
from dalle.apps.zeroshot.templates import templates_of
from dalle.checkpoints.hub import SHIPPED
from dalle.checkpoints.load import load_clip
from dalle.data.base import BadRecord
from dalle.device import pick_device
from dalle.models.clip import CLIP


@dataclass(frozen=True)
class Prediction:
    """What a picture shows, the likeliest first."""

    picture: str  # its path, or what it is called
    labels: list[str]
    probabilities: list[float]  # in [0, 1]; of all labels together they are 1, but of a SigLIP each stands alone


class ZeroShotClassifier:
    """Puts pictures to labels that are only named.

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

    def __init__(self, clip: CLIP, labels: Labels, templates: str | Sequence[str] = "pictures-en"):
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
                the label; None: "emoji-en" with the CLIP that ships, "pictures-en" with another.
            device: "auto" takes an accelerator if there is one.

        Raises:
            ValueError: no such CLIP or set, or labels or templates that are not what they should be.
        """
        words_of(labels)  # before the loading, which takes longer
        chosen = templates_of(templates or ("emoji-en" if source is None else "pictures-en"))
        clip = load_clip(SHIPPED / "clip" if source is None else source, pick_device(device))
        return cls(clip, labels, chosen)

    def __call__(
        self, pictures: ImageLike | Sequence[ImageLike], top: int | None = None, batch_size: int = 64
    ) -> list[Prediction]:
        """Classify pictures: paths, files' bytes, or Pillow's.

        Args:
            pictures: one or several.
            top: how many labels each; None: all.
            batch_size: pictures at a time.

        Raises:
            ValueError: `top` is below 1, or a picture cannot be read (`dalle.data.base.BadRecord`).
        """
        several = [pictures] if isinstance(pictures, ImageLike) else list(pictures)
        records = [as_record(picture, f"picture {number}") for number, picture in enumerate(several, 1)]
        results = []
        for result in self.predict(records, top, batch_size):
            if isinstance(result, BadRecord):
                raise result
            results.append(result)
        return results

    def predict(
        self, records: Records, top: int | None = None, batch_size: int = 64, workers: int = 0
    ) -> Iterator[Prediction | BadRecord]:
        """Classify many records as they are read, each to a prediction, or to why it could not be read.

        Args:
            records: what to read, for example `dalle.data.custom.folder.picture_files("photos/")`.
            top: how many labels each; None: all.
            batch_size: pictures at a time.
            workers: processes that read pictures; 0 reads them in this one.

        Raises:
            ValueError: a number is out of range.
        """
        if top is not None and top < 1:
            raise ValueError(f"top is {top}: ask for 1 label at least")
        for batch in embed_pictures(self.clip, records, batch_size, workers):
            results: dict[int, Prediction | BadRecord] = dict(batch.broken)
            best = self.probabilities(batch.vectors).sort(dim=-1, descending=True, stable=True)
            rows = zip(batch.numbers, best.indices[:, :top].tolist(), best.values[:, :top].tolist(), strict=True)
            for number, order, values in rows:
                results[number] = Prediction(records[number].key, [self.labels[label] for label in order], values)
            yield from (results[number] for number in sorted(results))

    @torch.inference_mode()
    def probabilities(self, image_embeds: Tensor) -> Tensor:
        """Unit vectors of pictures [B, D] -> float32 [B, L], each row 1 in all; of a SigLIP each label by itself."""
        if self.clip.config.sigmoid:
            return self.clip.probabilities(image_embeds @ self.label_embeds.T)
        return (self.clip.scale.cpu().float() * image_embeds @ self.label_embeds.T).softmax(dim=-1)


def label_embeds(clip: CLIP, words: Sequence[Sequence[str]], templates: Sequence[str]) -> Tensor:
    """For each label the normalised mean of the unit vectors of its sentences.

    Args:
        clip: Loaded by `dalle.load_clip`.
        words: L times the words that a label goes by.
        templates: K sentences with {}.

    Returns:
        float32 [L, D].
    """
    sentences = [[template.replace("{}", word) for word in own for template in templates] for own in words]
    every = embed_texts(clip, [sentence for own in sentences for sentence in own])  # [all sentences, D]
    means = [part.mean(dim=0) for part in every.split([len(own) for own in sentences])]
    return F.normalize(torch.stack(means), dim=-1)
