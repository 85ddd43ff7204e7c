"""The held-out pairs that an unCLIP is evaluated on, and what judges its images: an independent CLIP, a classifier.

Shapes: N pairs, M training images, H height and width in pixels, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dalle.apps.judging.drawings import Drawings, load_images, open_plain
from dalle.apps.judging.judge import Judge, Target, rank_metrics
from dalle.apps.judging.memorization import downsample, nearest_neighbors
from dalle.data import AnyDataConfig, DrawingsConfig, open_data
from dalle.data.loader import evaluation_batches
from dalle.device import device_of
from dalle.evaluation.metrics import frechet_distance
from dalle.images.transforms import resize_batch, to_images
from dalle.models.clip import CLIP

Metrics = dict[str, float | None]
Rows = dict[str, Metrics]
Advance = Callable[[int], object]
_BATCH = 64


@dataclass(frozen=True)
class Pairs:
    """Some pairs of a split.

    Attributes:
        images: float32 [N, 3, H, H] in [0, 1].
        captions: N of them.
        targets: what a classifier should find in each; None of data without styles and concepts.
    """

    images: Tensor
    captions: list[str]
    targets: list[Target] | None

    def __len__(self) -> int:
        return len(self.captions)

    def pil_images(self) -> list[Image.Image]:
        """The images as files would have them."""
        return to_images(self.images)

    def some(self, chosen: Sequence[int]) -> Pairs:
        """A selection, in that order."""
        targets = None if self.targets is None else [self.targets[number] for number in chosen]
        return Pairs(self.images[list(chosen)], [self.captions[number] for number in chosen], targets)

    def first(self, count: int) -> Pairs:
        """At most `count` of them, spread evenly."""
        count = min(count, len(self))
        return self.some([number * len(self) // count for number in range(count)])


def read_pairs(data: AnyDataConfig, split: str, image_size: int, limit: int | None = None) -> Pairs:
    """Read a split.

    Raises:
        ValueError: the data does not exist, or has no such split.
    """
    dataset = open_data(data, split, image_size)
    if isinstance(dataset, Drawings):
        drawings = open_plain(data, split, image_size)
        indices = list(range(len(drawings)))
        if limit is not None:
            indices = [number * len(indices) // limit for number in range(min(limit, len(indices)))]
        targets = [drawing_target(drawings, index) for index in indices]
        return Pairs(load_images(drawings, indices), [target.caption for target in targets], targets)
    batches = list(evaluation_batches(dataset, _BATCH, limit=limit))
    images = torch.cat([batch.images for batch in batches]).float().div_(255)
    return Pairs(images, [caption for batch in batches for caption in batch.captions], None)


def drawing_target(drawings: Drawings, index: int) -> Target:
    """What a classifier should find in a drawing."""
    return Target(drawings.concepts[index].phrase, drawings.styles[index], drawings.canonical_caption(index))


def training_split(data: AnyDataConfig) -> str:
    """The split of the training images as they are, without the composition of training."""
    return "known" if isinstance(data, DrawingsConfig) else "train"


class Judges:
    """Judges generated images by models that had no part in making them.

    Args:
        clip: ranks captions and measures distances; it should not be the model's own.
        classifier: also ranks concepts and styles; None: there is none.
        pairs: the split, whose N captions are ranked.
    """

    def __init__(self, clip: CLIP, classifier: Judge | None, pairs: Pairs):
        self.clip, self.classifier = clip, classifier
        with torch.no_grad():
            self.caption_embeds = clip.encode_text(pairs.captions)
        self.captions = pairs.captions
        self._known: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def embeds(self, images: Tensor) -> Tensor:
        """Unit embeddings [N, D] of images [N, 3, H, H] in [0, 1] of any size."""
        size, device = self.clip.config.image_size, device_of(self.clip)
        return torch.cat([self.clip.encode_image(resize_batch(part.to(device), size)) for part in images.split(_BATCH)])

    def metrics(self, images: Tensor, pairs: Pairs) -> Metrics:
        """Metrics of images [N, 3, H, H] made for the captions of N pairs of the split.

        Returns:
            "caption_top1" and "caption_top10": how often the CLIP ranks the own caption first, or among the first ten,
            of all captions of the split; "frechet": Fréchet distance to the pairs' images in its embeddings; with a
            classifier also "concept_top1", "concept_top5", "style", and "judge_caption_top10" of its 400 captions.
        """
        embeds = self.embeds(images)
        found: Metrics = {"images": len(images), **self._caption_ranks(embeds, pairs.captions)}
        found["frechet"] = frechet_distance(embeds, self.embeds(pairs.images)) if len(images) > 1 else None
        if self.classifier is not None and pairs.targets is not None:
            ranks = rank_metrics(self.classifier.ranks(images, pairs.targets))
            found |= {name: ranks[name] for name in ("concept_top1", "concept_top5", "style")}
            found["judge_caption_top10"] = ranks["caption_top10"]
        return found

    def _caption_ranks(self, embeds: Tensor, captions: Sequence[str]) -> dict[str, float]:
        places = torch.tensor([self.captions.index(caption) for caption in captions], device=embeds.device)
        scores = embeds @ self.caption_embeds.T
        ranks = (scores >= scores.gather(1, places[:, None])).sum(1)
        # A caption that occurs twice ties with itself only
        ranks -= torch.tensor([self.captions.count(caption) - 1 for caption in captions], device=embeds.device)
        return {f"caption_top{most}": (ranks <= most).float().mean().item() for most in (1, 10)}

    def nearest_training(self, images: Tensor, data: AnyDataConfig) -> Metrics:
        """How near images are to a training image: "near_copies" and the median "neighbor_rmse" in units of 1/255."""
        if self._known is None:
            known = open_data(data, training_split(data), self.clip.config.image_size)
            small, features = [], []
            for batch in evaluation_batches(known, _BATCH):
                part = batch.unit_images(torch.device("cpu"))
                small.append(downsample(part))
                features.append(self.embeds(part).cpu())
            self._known = torch.cat(small), torch.cat(features)
        found = nearest_neighbors(images, self.embeds(images).cpu(), *self._known)
        return {"near_copies": found.near_copies, "neighbor_rmse": found.errors.median().item()}


def cosine_distances(embeds: Tensor, reference: Tensor) -> Tensor:
    """One minus the cosine similarity of each of [N, D] with one of [1, D]: [N]."""
    return 1 - F.cosine_similarity(embeds, reference, dim=-1)
