"""What sampling is told: how codes are drawn from logits, and how fast. Brings in no torch."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Annotated, Literal

from dalle.config import config
from dalle.ranges import NonNegativeInt, PositiveInt, Probability, Range


@config
class EngineOptions:
    """Speed and memory of sampling: an image never depends on them."""

    window: Annotated[int, Range(1, ceiling=10**12, hint="1 draws one token after the other")] = 1
    """Codes guessed and checked in one step (`dalle.generation.jacobi`): 16 halves the steps of one candidate at a
    time; 1 draws one after the other."""
    compiled: bool = False
    """On a GPU: have torch.compile make the steps faster, which takes a minute or so first."""
    batch_size: PositiveInt | None = None
    """Candidates at a time; null: as many as fit the memory."""
    max_memory: Annotated[int, Range(1, ceiling=10**18)] | None = None
    """Bytes that a batch may take beside the weights; null: half of the free memory."""


@config
class SamplingConfig:
    """How a token is drawn from logits: the one place where an option of sampling is declared."""

    guidance: Annotated[float, Range(0, ceiling=10**18, hint="1 is no guidance")] = 1.0
    """Classifier-free guidance scale: above 1 follows the prompt more closely, with less variety; 1 is none."""
    guidance_until: NonNegativeInt | None = None
    """Draw so many image tokens with guidance and the others, twice as fast, without; null: all with it."""
    temperature: Annotated[float, Range(0, ceiling=10**38, hint="0 takes the most likely token")] = 1.0
    """0 always takes the most likely code; 1 is the model's own distribution."""
    top_k: Annotated[int, Range(1, ceiling=10**12, hint="leave it out to keep all codes")] | None = None
    """Draw from the k most likely codes only; null, or the size of the codebook, from all."""
    top_p: Annotated[float, Range(0, 1, above=True)] | None = None
    """Draw from the most likely codes that together have this probability, in (0, 1]; null or 1 from all."""

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

    steps: Annotated[int, Range(1, ceiling=10**6)] | None = None
    """Diffusion: passes of the decoder."""
    sampler: Literal["ddpm", "ddim", "dpm++"] | None = None
    """Diffusion: sampler of the decoder."""
    eta: Probability | None = None
    """Diffusion: with ddim, from 0, which draws nothing but the start, to 1, as ddpm."""
    prior_steps: Annotated[int, Range(1, ceiling=10**6)] | None = None
    """Diffusion: passes of a diffusion prior."""
    prior_guidance: Annotated[float, Range(0, ceiling=10**18, hint="1 is no guidance")] | None = None
    """Diffusion: guidance scale of the prior; 1 is none, and the paper found that more hurts."""
    prior_samples: Annotated[int, Range(1, ceiling=2**20)] | None = None
    """Diffusion: embeddings that a diffusion prior samples of each candidate, to keep the one that fits best."""
    upsampler_steps: Annotated[int, Range(1, ceiling=10**6)] | None = None
    """Diffusion: passes of the upsampler."""
    resample: Annotated[int, Range(1, ceiling=10**6)] | None = None
    """Diffusion: how often each step is taken where a mask says what is new (RePaint); 1 if not given."""
