"""Recipes of the two tokenizers: a BPE of captions, and a dVAE or VQGAN of images."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from dalle.config import config
from dalle.config.ranges import PositiveInt, Weight
from dalle.data import DataConfig
from dalle.image_tokenizers import ImageTokenizerConfig
from dalle.text_tokenizers import TextTokenizerConfig
from dalle.training.checkpoint.best import check_metric
from dalle.training.losses.adversarial import AdversarialConfig
from dalle.training.losses.perceptual import NonePerceptual, PerceptualConfig
from dalle.training.optim import CosineSchedule, OptimConfig
from dalle.training.recipe.run import Resume, RunConfig


@config
class TextTokenizerRecipe:
    """Training a BPE text tokenizer."""

    stage: Literal["text_tokenizer"]
    model: TextTokenizerConfig
    data: DataConfig
    dir: Path
    """Run folder: the tokenizer is written to its model/."""
    max_captions: PositiveInt = 1_000_000
    """Maximum number of captions to learn the BPE from."""


@config
class ImageTokenizerRecipe:
    """Training an image tokenizer: a dVAE or a VQGAN."""

    stage: Literal["image_tokenizer"]
    model: ImageTokenizerConfig
    data: DataConfig
    optim: OptimConfig
    run: RunConfig
    init_from: str | None = None
    """VQGAN of ours to go on from. Its decoder may have fewer blocks and less attention, which draw the same image at
    first, and another `patch`: then it is the same image at the size of this one."""
    lock: Literal["encoder"] | None = None
    """encoder: keep the codes of `init_from`, so that models of them can be drawn by the decoder that is trained."""
    l1_weight: Weight = 1.0
    """Weight of the mean absolute error (VQGAN)."""
    codebook_weight: Weight = 1.0
    """Weight of the codebook and commitment loss (VQGAN)."""
    perceptual: PerceptualConfig = NonePerceptual()
    """Feature network of the perceptual loss."""
    perceptual_weight: Weight = 1.0
    """Weight of the perceptual loss."""
    adversarial: AdversarialConfig | None = None
    """Patch discriminator; null trains without an adversarial loss."""
    kl_weight: CosineSchedule = CosineSchedule(first=0.0, last=6.6, steps=5000)
    """Weight of the KL to the uniform prior, on the paper's scale (dVAE and Gumbel quantizer)."""
    temperature: CosineSchedule = CosineSchedule(first=1.0, last=1 / 16, steps=150_000)
    """Temperature of the Gumbel-softmax relaxation (dVAE and Gumbel quantizer)."""
    resume: Resume = False
    """Resume from the newest checkpoint of run.dir; auto resumes one of the same config, or else starts a new run."""

    def __post_init__(self) -> None:
        check_metric(self.stage, self.run.keep_best, self.run.stop_after)
        if self.init_from is not None and self.model.kind != "vqgan":
            raise ValueError(f"init_from is for a VQGAN, and model.kind is {self.model.kind}: set init_from=null")
        if self.lock is not None and self.init_from is None:
            raise ValueError("lock freezes pretrained weights: give them as init_from, or set lock=null")
        # The relaxation divides logits by it
        if min(self.temperature.first, self.temperature.last) <= 0:
            raise ValueError(
                f"temperature goes from {self.temperature.first} to {self.temperature.last}; both must be above 0"
            )
