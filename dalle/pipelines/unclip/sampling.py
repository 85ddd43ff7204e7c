"""Sampling options, seeds, noise and progress of the three stages of unCLIP, and the known part of an inpainting."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from dalle.generation.diffusion.sample import Noise
from dalle.generation.diffusion_decoder import DiffusionSamplingConfig
from dalle.generation.options import SamplingConfig, UnCLIPOptions
from dalle.generation.prior import PriorSamplingConfig
from dalle.generation.progress import Progress

Stage = Literal["prior", "decoder", "upsampler"]
StageNoise = Callable[[Stage, tuple[int, ...]], Tensor]
"""Returns the next Gaussian noise of a stage, of a shape [B, ...]; called in the order in which it is used."""


_PART_OF = {  # options of a part that not every unCLIP has
    "prior_steps": "a diffusion prior",
    "prior_samples": "a diffusion prior",
    "temperature": "an autoregressive prior",
    "top_k": "an autoregressive prior",
    "upsampler_steps": "an upsampler",
}


@dataclass(frozen=True)
class Sampling:
    """Sampling options of each stage."""

    prior: PriorSamplingConfig
    decoder: DiffusionSamplingConfig
    upsampler: DiffusionSamplingConfig

    def image_steps(self, has_upsampler: bool) -> int:
        """Number of diffusion steps of a candidate in the decoder and the upsampler."""
        return self.decoder.sampler.steps + (self.upsampler.sampler.steps if has_upsampler else 0)

    def updated(self, options: Mapping[str, Any], parts: Collection[str]) -> Sampling:
        """A copy with these options of a call, except those that are None.

        Args:
            options: the options by name.
            parts: those of `_PART_OF` that the model has.

        Raises:
            ValueError: an option does not exist, is out of range, or is for a part that the model does not have.
        """
        options = {name: value for name, value in options.items() if value is not None}
        names = [*(field.name for field in fields(UnCLIPOptions)), "guidance", "temperature", "top_k"]
        for name in options:
            if name not in names:
                of_tokens = name in {field.name for field in fields(SamplingConfig)}
                why = "an option of models that sample tokens" if of_tokens else "no option of an unCLIP"
                raise ValueError(f"{name} is {why}: known here are {', '.join(names)}")
            if name in _PART_OF and _PART_OF[name] not in parts:
                raise ValueError(f"{name} is for {_PART_OF[name]}, and this model has none: leave it out")
        # By their own names: a part's options have others, such as steps for prior_steps
        UnCLIPOptions(**{field.name: options[field.name] for field in fields(UnCLIPOptions) if field.name in options})
        prior, decoder, upsampler = self.prior, self.decoder, self.upsampler
        of_sampler = {name: options[name] for name in ("steps", "sampler", "eta") if name in options}
        decoder = replace(
            decoder, sampler=decoder.sampler.updated(**of_sampler), guidance=options.get("guidance", decoder.guidance)
        )
        if "upsampler_steps" in options:
            upsampler = replace(upsampler, sampler=upsampler.sampler.updated(steps=options["upsampler_steps"]))
        if "prior_steps" in options:
            prior = replace(prior, sampler=prior.sampler.updated(steps=options["prior_steps"]))
        # Option of a call -> field of the prior's config
        of_prior = {
            "prior_guidance": "guidance",
            "prior_samples": "samples",
            "temperature": "temperature",
            "top_k": "top_k",
        }
        prior = replace(prior, **{field: options[name] for name, field in of_prior.items() if name in options})
        return Sampling(prior, decoder, upsampler)


@dataclass(frozen=True)
class Inpainting:
    """An image of which a part is generated anew."""

    image: Tensor  # [3, H, W] in [0, 1]
    mask: Tensor  # bool [H, W], True where it is new
    resample: int  # repetitions of each step (RePaint, arXiv 2201.09865)

    def mask_at(self, size: int) -> Tensor:
        """The mask in another size, bool [1, size, size]; a pixel is new if any of the pixels it is made of is."""
        return F.adaptive_max_pool2d(self.mask[None].float(), size) > 0


class ProgressMeter:
    """Counts diffusion steps over all candidates, for a progress bar.

    Attributes:
        rows: candidates of the current batch, or network passes of a step of inversion.
    """

    def __init__(self, progress: Progress | None, total: int):
        self._progress, self._total, self._done = progress, total, 0
        self.rows = 1

    def step(self, _done: int, _all: int) -> None:
        """Count a step of a batch; a callback of the samplers."""
        self._done += self.rows
        if self._progress is not None:
            self._progress(self._done, self._total)


def noise_of_stage(noise: StageNoise, stage: Stage, shape: tuple[int, ...]) -> Noise:
    """The noise source that the sampler of one stage expects.

    Raises:
        ValueError: `noise` is no function, or (when it is called) returns another shape.
    """
    if not callable(noise):
        raise ValueError(f"noise is of type {type(noise).__name__}: give a function of a stage and a shape")
    return lambda: check_shape(f"the noise of the {stage}", noise(stage, shape), shape)


def check_shape(name: str, given: Any, *shapes: tuple[int, ...]) -> Tensor:
    """Check that an argument is a tensor of floating-point numbers of one of some shapes; returns it.

    Raises:
        ValueError: it is not; torch would stretch other numbers of rows in silence, or fail far from here.
    """
    wanted = " or ".join(str(list(shape)) for shape in shapes)
    if not isinstance(given, Tensor):
        raise ValueError(f"{name} is of type {type(given).__name__}: give a tensor {wanted}")
    if tuple(given.shape) not in shapes or not given.is_floating_point():
        raise ValueError(f"{name} is {given.dtype} {list(given.shape)}: give floating-point numbers {wanted}")
    return given


def stage_seeds(seeds: Sequence[int], stage: Stage) -> list[int]:
    """Seeds of one stage, by a hash: with the same seed in all stages, their noise would be correlated."""
    digests = (hashlib.blake2b(f"{seed}/{stage}".encode(), digest_size=8).digest() for seed in seeds)
    return [int.from_bytes(digest, "big") >> 1 for digest in digests]  # generators take less than 2^63
