"""The result of a pipeline for one prompt: images with their scores, codes and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dalle.generation.rerank import best

_COMPARED, _NEAR = 16, 12.0  # near-duplicates: RMSE of at most 12 of 255 between images shrunk to 16x16 (docs/log.md)
_LOSS = 0.15  # share of the best score that an image may lack to be preferred to a near-duplicate of a better one


@dataclass(frozen=True)
class Result:
    """The images of one prompt, in the order of their seeds; after `best`, those with the highest scores first.

    Attributes:
        prompt: the prompt.
        images: RGB images of the model's size.
        scores: CLIP's cosine similarity of each image with the prompt, or a SigLIP's probability; None if not scored.
        codes: int64 [K, h, w] on the CPU; None from a diffusion model.
        seeds: seed of each image, which generates it again alone (`seed=..., n=1`).
    """

    prompt: str
    images: list[Image.Image]
    scores: list[float] | None
    codes: Tensor | None
    seeds: list[int]

    @classmethod
    def merged(cls, parts: Sequence[Result]) -> Result:
        """Merge candidates of one prompt that were sampled in several parts, in that order."""
        scores = [score for part in parts for score in part.scores or ()]
        codes = [part.codes for part in parts if part.codes is not None]
        return cls(
            prompt=parts[0].prompt,
            images=[image for part in parts for image in part.images],
            scores=scores or None,
            codes=torch.cat(codes) if codes else None,
            seeds=[seed for part in parts for seed in part.seeds],
        )

    def best(self, keep: int, distinct: bool = False) -> Result:
        """The `keep` images with the highest scores, best first; without scores the first ones.

        Args:
            keep: number of images.
            distinct: skip near-duplicates of images with a higher score, as long as there are others with at least 85 %
                of the best score.
        """
        order = list(range(len(self.images))) if self.scores is None else best(self.scores)
        if distinct and keep < len(order):
            # Of negative scores, too, the best less a share of its size
            least = -float("inf") if self.scores is None else self.scores[order[0]] - _LOSS * abs(self.scores[order[0]])
            good = [i for i in order if self.scores is None or self.scores[i] >= least]
            chosen = distinct_first(self.images, good, keep)
            # Too few are distinct and good: the next best fill up
            rest = [i for i in order if i not in chosen][: keep - len(chosen)]
            order = [i for i in order if i in chosen or i in rest]  # best first again
        order = order[:keep]
        return Result(
            prompt=self.prompt,
            images=[self.images[i] for i in order],
            scores=None if self.scores is None else [self.scores[i] for i in order],
            codes=None if self.codes is None else self.codes[order],
            seeds=[self.seeds[i] for i in order],
        )


def distinct_first(images: Sequence[Image.Image], order: Sequence[int], keep: int) -> list[int]:
    """Choose the first images that are no near-duplicates of those chosen before.

    Args:
        images: images of one size.
        order: indices of those to choose from, best first.
        keep: number of indices wanted.

    Returns:
        At most `keep` indices, in the order given.
    """
    small: list[np.ndarray] = []
    chosen: list[int] = []
    for index in order:
        if len(chosen) == keep:
            break
        # Shrunk, so that an outline that has moved by a pixel does not count
        shrunk = images[index].convert("RGB").resize((_COMPARED, _COMPARED), Image.Resampling.BOX)
        pixels = np.asarray(shrunk, dtype=np.float32)
        if all(np.sqrt(np.mean((pixels - other) ** 2)) > _NEAR for other in small):
            small.append(pixels)
            chosen.append(index)
    return chosen
