"""What a call of an unCLIP asks for: options of each part, seeds of each stage, what is kept of a given image."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from dalle.generation.decoder import DiffusionSamplingConfig, from_unit
from dalle.generation.diffusion.inpaint import Known
from dalle.generation.diffusion.sample import Noise
from dalle.generation.generate import Progress
from dalle.generation.options import SamplingConfig, UnCLIPOptions
from dalle.generation.prior import PriorSamplingConfig
from dalle.images.transforms import resize_batch

Stage = Literal["prior", "decoder", "upsampler"]
PlayedNoise = Callable[[Stage, tuple[int, ...]], Tensor]
"""Gives the numbers of a stage, of a shape [B, ...], in the order in which they are used."""


@dataclass(frozen=True)
class Sampling:
    """How each part is sampled."""

    prior: PriorSamplingConfig
    decoder: DiffusionSamplingConfig
    upsampler: DiffusionSamplingConfig

    def passes(self, upsamples: bool) -> int:
        """Steps that a candidate takes through decoder and upsampler."""
        return self.decoder.sampler.steps + (self.upsampler.sampler.steps if upsamples else 0)

    def updated(self, options: dict[str, Any]) -> Sampling:
        """How each part is sampled, with what is given.

        Raises:
            ValueError: there is no such option, or it is out of range.
        """
        given = {name: value for name, value in options.items() if value is not None}
        names = [*(field.name for field in fields(UnCLIPOptions)), "guidance", "temperature", "top_k"]
        for name in given:
            if name not in names:
                known = name in {field.name for field in fields(SamplingConfig)}
                why = "an option of models that sample tokens" if known else "no option of an unCLIP"
                raise ValueError(f"{name} is {why}: known here are {', '.join(names)}")
        walk = {name: given[name] for name in ("steps", "sampler", "eta") if name in given}
        prior, decoder, upsampler = self.prior, self.decoder, self.upsampler
        decoder = replace(
            decoder, sampler=decoder.sampler.updated(**walk), guidance=given.get("guidance", decoder.guidance)
        )
        if "upsampler_steps" in given:
            upsampler = replace(upsampler, sampler=upsampler.sampler.updated(steps=given["upsampler_steps"]))
        if "prior_steps" in given:
            prior = replace(prior, sampler=prior.sampler.updated(steps=given["prior_steps"]))
        own = {"guidance": "prior_guidance", "samples": "prior_samples", "temperature": "temperature", "top_k": "top_k"}
        prior = replace(prior, **{name: given[key] for name, key in own.items() if key in given})
        return Sampling(prior, decoder, upsampler)


@dataclass(frozen=True)
class Start:
    """A given image of which a part is made anew."""

    image: Tensor  # [3, H, W] in [0, 1]
    new: Tensor  # bool [H, W]
    resample: int

    def at(self, size: int) -> Known:
        """What is known in another size; a pixel is new if any that it stands for is."""
        unknown = F.adaptive_max_pool2d(self.new[None].float(), size) > 0
        return Known(from_unit(resize_batch(self.image[None], size)), unknown)


class Meter:
    """Steps of all candidates, for a progress bar."""

    def __init__(self, progress: Progress | None, candidates: int, passes: int):
        self._progress, self._total, self._done = progress, candidates * passes, 0
        self.rows = 1  # candidates of the batch at hand

    def step(self, _done: int, _all: int) -> None:
        """A step of a batch is done."""
        self._done += self.rows
        if self._progress is not None:
            self._progress(self._done, self._total)


def played_noise(noise: PlayedNoise, stage: Stage, shape: tuple[int, ...]) -> Noise:
    """A sampler's noise source that plays back given noise of one stage."""
    return lambda: noise(stage, shape)


def stage_seeds(seeds: Sequence[int], stage: Stage) -> list[int]:
    """Seeds of a stage: a candidate's noise of one is not that of another."""
    digests = (hashlib.blake2b(f"{seed}/{stage}".encode(), digest_size=8).digest() for seed in seeds)
    return [int.from_bytes(digest, "big") >> 1 for digest in digests]
