"""The result of a pipeline for one prompt: images with their scores, codes and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from dalle.generation.rerank import best
from dalle.pipelines.thumbnails import agreement, distinct_first, thumbnails

_LOSS = 0.1  # share of the best rating that an image may lack to be preferred to a near-duplicate of a better one


@dataclass(frozen=True)
class Result:
    """The images of one prompt, in the order of their seeds; after `best`, those with the highest ratings first.

    Attributes:
        prompt: the prompt.
        images: RGB images of the model's size.
        scores: CLIP's cosine similarity of each image with the prompt, or a SigLIP's probability; None if not scored.
        codes: int64 [K, h, w] on the CPU; None from a diffusion model.
        seeds: seed of each image, which generates it again alone (`seed=..., n=1`).
        weight: of the agreement in the rating of an image, the option `agreement` of `SamplingConfig`.
        agreement: how well each image agrees with the other candidates, in [-1, 0] (`thumbnails.agreement`); None
            before `best`, and where it has no weight or nothing is scored.
    """

    prompt: str
    images: list[Image.Image]
    scores: list[float] | None
    codes: Tensor | None
    seeds: list[int]
    weight: float = 0.0
    agreement: list[float] | None = None

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
            weight=parts[0].weight,  # agreement with all candidates is not known yet
        )

    def best(self, keep: int, distinct: bool = False) -> Result:
        """The `keep` images with the highest ratings, best first; without scores the first ones.

        The rating of an image is its score, plus `weight` times its agreement with all candidates of this result. What
        `best` returns keeps the agreement with those that are left out.

        Args:
            keep: number of images.
            distinct: skip near-duplicates of images with a higher rating, as long as there are others with at least
                90 % of the best one.

        Raises:
            ValueError: there are not so many images, or none is to be kept.
        """
        if not 1 <= keep <= len(self.images):
            raise ValueError(f"keep is {keep} of {len(self.images)} images: keep from 1 to {len(self.images)}")
        agreed = self.agreement
        chooses = distinct and keep < len(self.images)
        weighs = self.scores is not None and self.weight > 0 and agreed is None
        small = thumbnails(self.images) if chooses or weighs else None
        if weighs and small is not None:
            agreed = agreement(small)
        ratings = self._ratings(agreed)
        order = list(range(len(self.images))) if ratings is None else best(ratings)
        if chooses and small is not None:
            # Of negative ratings, too, the best less a share of its size
            least = -float("inf") if ratings is None else ratings[order[0]] - _LOSS * abs(ratings[order[0]])
            good = [i for i in order if ratings is None or ratings[i] >= least]
            chosen = distinct_first(small, good, keep)
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
            weight=self.weight,
            agreement=None if agreed is None else [agreed[i] for i in order],
        )

    def scores_of(self, number: int) -> dict[str, float | None]:
        """What is recorded beside an image: its `score`, None if not scored, and its `agreement` where it is known."""
        agreed = {} if self.agreement is None else {"agreement": self.agreement[number]}
        return {"score": None if self.scores is None else self.scores[number], **agreed}

    def _ratings(self, agreed: list[float] | None) -> list[float] | None:
        if self.scores is None or agreed is None:
            return self.scores
        return [score + self.weight * own for score, own in zip(self.scores, agreed, strict=True)]
