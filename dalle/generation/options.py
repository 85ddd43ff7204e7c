"""What sampling is told: how codes are drawn from logits, and how fast. Brings in no torch."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Literal

from dalle.config import config


@config
class EngineOptions:
    """Speed and memory of sampling: an image never depends on them."""

    window: int = 1
    """Codes guessed and checked in one step (`dalle.generation.jacobi`): 16 halves the steps of one candidate at a
    time; 1 draws one after the other."""
    compiled: bool = False
    """On a GPU: have torch.compile make the steps faster, which takes a minute or so first."""
    batch_size: int | None = None
    """Candidates at a time; null: as many as fit the memory."""
    max_memory: int | None = None
    """Bytes that a batch may take beside the weights; null: half of the free memory."""

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; it must be at least 1")
        if self.window < 1:
            raise ValueError(f"window is {self.window}; it must be at least 1 (1 draws one token after the other)")


@config
class SamplingConfig:
    """How a token is drawn from logits: the one place where an option of sampling is declared."""

    guidance: float = 1.0
    """Classifier-free guidance scale: above 1 follows the prompt more closely, with less variety; 1 is none."""
    guidance_until: int | None = None
    """Draw so many image tokens with guidance and the others, twice as fast, without; null: all with it."""
    temperature: float = 1.0
    """0 always takes the most likely code; 1 is the model's own distribution."""
    top_k: int | None = None
    """Draw from the k most likely codes only; null, or the size of the codebook, from all."""
    top_p: float | None = None
    """Draw from the most likely codes that together have this probability, in (0, 1]; null or 1 from all."""

    def __post_init__(self) -> None:
        if not 0 <= self.guidance < float("inf"):
            raise ValueError(f"guidance is {self.guidance}; it must be 0 or more (1 is no guidance)")
        if self.guidance_until is not None and self.guidance_until < 0:
            raise ValueError(f"guidance_until is {self.guidance_until}; it must be 0 or more image tokens")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (the most likely token) or more")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; it must be at least 1 (leave it out to keep all codes)")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1")

    def updated(self, **given: float | int | None) -> SamplingConfig:
        """These options where they are given and not None, its own elsewhere.

        Raises:
            ValueError: one is out of range, or there is no such option.
        """
        names = [field.name for field in fields(self)]
        for name in given:
            if name not in names:
                raise ValueError(f"{name} is no option of sampling: {', '.join(names)}")
        return replace(self, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]

    def guides(self, token: int) -> bool:
        """Whether this image token is drawn with guidance."""
        return self.guidance != 1 and (self.guidance_until is None or token < self.guidance_until)


@config
class UnCLIPOptions:
    """How an unCLIP samples, beside its guidance: what is not given is as its parts say."""

    steps: int | None = None
    """Diffusion: passes of the decoder."""
    sampler: Literal["ddpm", "ddim", "dpm++"] | None = None
    """Diffusion: sampler of the decoder."""
    eta: float | None = None
    """Diffusion: with ddim, from 0, which draws nothing but the start, to 1, as ddpm."""
    prior_steps: int | None = None
    """Diffusion: passes of a diffusion prior."""
    prior_guidance: float | None = None
    """Diffusion: guidance scale of the prior; 1 is none, and the paper found that more hurts."""
    prior_samples: int | None = None
    """Diffusion: embeddings that a diffusion prior samples of each candidate, to keep the one that fits best."""
    upsampler_steps: int | None = None
    """Diffusion: passes of the upsampler."""
    resample: int | None = None
    """Diffusion: how often each step is taken where a mask says what is new (RePaint); 1 if not given."""
