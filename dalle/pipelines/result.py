"""What a pipeline returns for a prompt: images with their scores, codes and seeds."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from dalle.generation.rerank import best


@dataclass(frozen=True)
class Result:
    """The images of one prompt, best first if they were scored, else in the order of their seeds."""

    prompt: str
    images: list[Image.Image]  # RGB, all of the model's size
    scores: list[float] | None  # CLIP's cosine with the prompt, or a SigLIP's probability that they fit; None without
    codes: Tensor | None  # int64 [K, h, w], on the CPU; None of a diffusion
    seeds: list[int]  # each draws its image again by itself: seed=..., n=1

    def best(self, keep: int) -> Result:
        """The `keep` images with the highest scores, best first; without scores the first ones."""
        order = best(self.scores, keep) if self.scores is not None else list(range(keep))
        return Result(
            prompt=self.prompt,
            images=[self.images[i] for i in order],
            scores=None if self.scores is None else [self.scores[i] for i in order],
            codes=None if self.codes is None else self.codes[order],
            seeds=[self.seeds[i] for i in order],
        )
