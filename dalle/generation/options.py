"""Options of generation: how codes are sampled from logits, and how fast. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Annotated, Any, Literal

from dalle.config import config
from dalle.config.ranges import NonNegativeInt, PositiveInt, Probability, Range


@config
class EngineOptions:
    """Speed and memory of generation; they never change an image."""

    window: Annotated[int, Range(1, ceiling=10**12, hint="1 draws one token after the other")] = 1
    """Codes guessed and checked per step (Jacobi decoding, `dalle.generation.jacobi`): 16 halves the steps of a single
    candidate; 1 generates one after the other."""
    compiled: bool = False
    """On a GPU: compile the decode step with torch.compile, which is faster but takes about a minute first."""
    batch_size: PositiveInt | None = None
    """Candidates generated at once; null: as many as fit in memory."""
    max_memory: Annotated[int, Range(1, ceiling=10**18)] | None = None
    """Bytes that a batch may take besides the weights; null: half of the free memory."""


def split_options(options: Mapping[str, Any]) -> tuple[EngineOptions, dict[str, Any]]:
    """Options of speed and memory, and the rest of a call's options: those that affect its images."""
    engine = {field.name: options[field.name] for field in fields(EngineOptions) if field.name in options}
    return EngineOptions(**engine), {name: value for name, value in options.items() if name not in engine}


COLDEST = 1e-9
"""The lowest temperature beside 0: logits divided by a lower one may overflow, and 0 takes the same token."""


@config
class SamplingConfig:
    """How tokens are sampled from logits and candidates chosen: the only declaration of the sampling options."""

    guidance: Annotated[float, Range(0, ceiling=10**18, hint="1 is no guidance")] = 1.0
    """Classifier-free guidance scale: above 1 follows the prompt more closely, with less variety; 1 is off."""
    guidance_until: NonNegativeInt | None = None
    """Use guidance for this many image tokens, and generate the rest without, twice as fast; null: for all."""
    temperature: Annotated[float, Range(0, ceiling=10**38, hint="0 takes the most likely token")] = 1.0
    """0 always takes the most likely code; 1 samples from the model's own distribution."""
    top_k: Annotated[int, Range(1, ceiling=10**12, hint="leave it out to keep all codes")] | None = None
    """Sample from the k most likely codes only; null, or the size of the codebook: from all."""
    top_p: Annotated[float, Range(0, 1, above=True)] | None = None
    """Sample from the most likely codes that together have this probability, in (0, 1]; null or 1: from all."""
    agreement: Annotated[float, Range(0, ceiling=10**6, hint="0 chooses by CLIP alone")] = 0.0
    """Of several candidates, choose by CLIP's score less this times the mean distance to the others (RMSE in [0, 1], of
    thumbnails): mistakes are rarely drawn twice; 0 chooses by CLIP alone."""

    def __post_init__(self) -> None:
        if 0 < self.temperature < COLDEST:
            raise ValueError(
                f"temperature is {self.temperature}; it must be 0 (the most likely token) or at least {COLDEST:g}"
            )

    def updated(self, **given: float | int | None) -> SamplingConfig:
        """A copy with these options, except those that are None.

        Raises:
            ValueError: an option is out of range or does not exist.
        """
        names = [field.name for field in fields(self)]
        for name in given:
            if name not in names:
                raise ValueError(f"{name} is not a sampling option; the options are {', '.join(names)}")
        return replace(self, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]

    def guides(self, token: int) -> bool:
        """Whether this image token is generated with guidance."""
        return self.guidance != 1 and (self.guidance_until is None or token < self.guidance_until)


@config
class UnCLIPOptions:
    """Sampling options of an unCLIP, besides guidance; the model's own where not given."""

    steps: Annotated[int, Range(1, ceiling=10**6)] | None = None
    """unCLIP: steps of the decoder."""
    sampler: Literal["ddpm", "ddim", "dpm++"] | None = None
    """unCLIP: sampler of the decoder."""
    eta: Probability | None = None
    """unCLIP: noise added by ddim, from 0 (deterministic) to 1 (as ddpm)."""
    prior_steps: Annotated[int, Range(1, ceiling=10**6)] | None = None
    """unCLIP: steps of a diffusion prior."""
    prior_guidance: Annotated[float, Range(0, ceiling=10**18, hint="1 is no guidance")] | None = None
    """unCLIP: guidance scale of the prior; 1 is off, which the paper found best."""
    prior_samples: Annotated[int, Range(1, ceiling=2**20)] | None = None
    """unCLIP: embeddings that a diffusion prior samples per candidate, of which the one closest to the text is kept."""
    upsampler_steps: Annotated[int, Range(1, ceiling=10**6)] | None = None
    """unCLIP: steps of the upsampler."""
    resample: Annotated[int, Range(1, ceiling=10**6)] | None = None
    """unCLIP: repetitions of each step with --mask (RePaint), for a smoother transition; 1 if not given."""
