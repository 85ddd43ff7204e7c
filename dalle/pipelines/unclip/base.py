"""The parts of an unCLIP at work: texts and images to embeddings, embeddings to images, images to their noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from dalle.checkpoints.unclip import UnCLIPParts
from dalle.device import device_of
from dalle.generation.decoder import (
    DiffusionSamplingConfig,
    decoder_denoiser,
    from_unit,
    image_shape,
    repeated,
    to_unit,
    upsampler_denoiser,
)
from dalle.generation.diffusion.inpaint import inpaint
from dalle.generation.diffusion.prediction import Denoiser
from dalle.generation.diffusion.sample import SamplerConfig, candidate_noise, invert, sample, sample_from
from dalle.generation.prior import sample_embeddings
from dalle.images.transforms import resize_batch, square_tensor, to_images
from dalle.models.clip import TextStates
from dalle.models.noise_schedule import make_schedule
from dalle.pipelines.unclip.sampling import Meter, PlayedNoise, Sampling, Start, played_noise, stage_seeds

INVERSION = SamplerConfig(sampler="ddim", steps=50)
ITERATIONS = 2  # of inversion: what plain DDIM inversion loses comes back (docs/log.md)
BATCH = 16  # candidates at a time


class EmbeddingDecoder:
    """Texts and images to embeddings z, and (z, x_T) to images (arXiv 2204.06125, section 3).

    Attributes:
        clip: what embeddings are of.
        prior: caption to image embedding.
        decoder: image embedding to small image.
        upsampler: small image to large one; None: there is none.
        sampling: how each part is sampled if nothing else is said.
        base_size: height and width of what the decoder makes, in pixels.
        image_size: height and width of the images.
    """

    def __init__(self, parts: UnCLIPParts):
        self.clip, self.prior, self.decoder, self.upsampler = parts.clip, parts.prior, parts.decoder, parts.upsampler
        self.sampling = Sampling(parts.prior_sampling, parts.decoder_sampling, parts.upsampler_sampling)
        self.base_size = parts.decoder.config.image_size
        self.image_size = self.base_size if parts.upsampler is None else parts.upsampler.config.image_size

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return device_of(self.decoder)

    @torch.no_grad()
    def embed(
        self,
        prompts: str | Sequence[str],
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        noise: PlayedNoise | None = None,
    ) -> Tensor:
        """Image embeddings of prompts, by the prior: float32 [P, D], as CLIP gives them, not of unit length.

        Args:
            prompts: one or several.
            steps: of a diffusion prior; None: the model's own.
            guidance: of the prior; None: the model's own.
            seed: of the first prompt; the others follow.
            noise: numbers to take in place of the seeds', stage "prior".
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        options = {"prior_steps": steps, "prior_guidance": guidance}
        sampling = self.sampling.updated({name: value for name, value in options.items() if value is not None}).prior
        shape = (len(prompts) * sampling.samples, self.clip.config.embed_dim)
        played = None if noise is None else played_noise(noise, "prior", shape)
        seeds = stage_seeds(range(seed, seed + len(prompts)), "prior")
        return sample_embeddings(self.prior, self.clip.text_states(prompts), seeds, sampling, played)

    @torch.no_grad()
    def embed_images(self, images: Image.Image | Sequence[Image.Image]) -> Tensor:
        """Embeddings of given images: float32 [B, D], as CLIP gives them, not of unit length."""
        return self._embedded(self._tensors(images))

    @torch.no_grad()
    def decode(
        self,
        z: Tensor,
        prompts: str | Sequence[str] = "",
        steps: int | None = None,
        guidance: float | None = None,
        upsampler_steps: int | None = None,
        seed: int = 0,
        noise: PlayedNoise | None = None,
    ) -> Tensor:
        """Images of embeddings.

        Args:
            z: [B, D], of `embed` or `embed_images`.
            prompts: captions of all or of each; "" says nothing.
            steps: of the decoder; None: the model's own.
            guidance: of the decoder; None: the model's own.
            upsampler_steps: of the upsampler; None: the model's own.
            seed: of the first image; the others follow.
            noise: numbers to take in place of the seeds', stages "decoder" and "upsampler".

        Returns:
            float32 [B, 3, H, W] in [0, 1].
        """
        names = [prompts] * len(z) if isinstance(prompts, str) else list(prompts)
        if len(names) != len(z):
            raise ValueError(f"{len(z)} embeddings with {len(names)} prompts: give one for each, or one for all")
        options = {"steps": steps, "guidance": guidance, "upsampler_steps": upsampler_steps}
        sampling = self.sampling.updated({name: value for name, value in options.items() if value is not None})
        text, seeds = self.clip.text_states(names), list(range(seed, seed + len(z)))
        return self._images(z.to(self.device), text, seeds, sampling, noise=noise)

    @torch.no_grad()
    def invert(
        self, images: Image.Image | Sequence[Image.Image], z: Tensor, steps: int = 50, iterations: int = ITERATIONS
    ) -> Tensor:
        """The noise x_T [B, 3, h, h] from which the decoder, told z and no guidance, gives given images back.

        Args:
            images: B of them; the decoder knows them in its own size.
            z: their embeddings [B, D].
            steps: of DDIM, to be taken back with as many.
            iterations: passes for each step; 1 is plain DDIM inversion.
        """
        return self._inverted(self._tensors(images), z, replace(INVERSION, steps=steps), iterations)

    def _located(self, item: Image.Image | str, seed: int, options: SamplerConfig) -> tuple[Tensor, Tensor]:
        """z [1, D] and x_T [1, 3, h, h] of an image or a text."""
        if isinstance(item, str):
            start = candidate_noise(stage_seeds([seed], "decoder"), image_shape(self.decoder), self.device)()
            return self.embed(item, seed=seed), start
        given = self._tensors(item)
        z = self._embedded(given)
        return z, self._inverted(given, z, options, ITERATIONS)

    def _walked(
        self, z: Tensor, starts: Tensor, options: SamplerConfig, seeds: list[int], upsampler_seeds: list[int]
    ) -> list[Image.Image]:
        """Images from z and x_T, without guidance, as inversion went."""
        images: list[Image.Image] = []
        for first in range(0, len(z), BATCH):
            part = slice(first, first + BATCH)
            noise = candidate_noise(stage_seeds(seeds[part], "decoder"), image_shape(self.decoder), self.device)
            schedule = make_schedule(self.decoder.config.schedule)
            low = sample_from(starts[part], self._plain(z[part]), schedule, options, noise)
            large = self._upsampled(low, upsampler_seeds[part], self.sampling.upsampler)
            images += to_images(to_unit(large))
        return images

    def _plain(self, z: Tensor) -> Denoiser:
        """The decoder told z and nothing else, without guidance and bounds: what can be inverted."""
        empty = repeated(self.clip.text_states([""]), len(z))
        return decoder_denoiser(self.decoder, z, empty, empty)

    def _inverted(self, images: Tensor, z: Tensor, options: SamplerConfig, iterations: int) -> Tensor:
        low = from_unit(resize_batch(images, self.base_size))
        return invert(low, self._plain(z), make_schedule(self.decoder.config.schedule), options, iterations)

    def _tensors(self, images: Image.Image | Sequence[Image.Image]) -> Tensor:
        """Given images as float [B, 3, H, W] in [0, 1], as large as CLIP or the model needs them."""
        images = [images] if isinstance(images, Image.Image) else list(images)
        size = max(self.image_size, self.clip.config.image_size)
        return torch.stack([square_tensor(image, size) for image in images]).to(self.device)

    def _embedded(self, images: Tensor) -> Tensor:
        return self.clip.encode_image(resize_batch(images, self.clip.config.image_size), normalize=False)

    def _images(
        self,
        z: Tensor,
        text: TextStates,
        seeds: list[int],
        sampling: Sampling,
        start: Start | None = None,
        meter: Meter | None = None,
        noise: PlayedNoise | None = None,
    ) -> Tensor:
        """Embeddings and captions to images in [0, 1]."""
        empty, options = self.clip.text_states([""]), sampling.decoder
        denoise = decoder_denoiser(self.decoder, z, text, empty, options.guidance, options.limit())
        low = self._run("decoder", denoise, options, seeds, start, meter, noise)
        return self._finished(self._upsampled(low, seeds, sampling.upsampler, start, meter, noise), start)

    def _upsampled(
        self,
        low: Tensor,
        seeds: list[int],
        options: DiffusionSamplingConfig,
        start: Start | None = None,
        meter: Meter | None = None,
        noise: PlayedNoise | None = None,
    ) -> Tensor:
        if self.upsampler is None:
            return low
        denoise = upsampler_denoiser(self.upsampler, low, options.limit())
        return self._run("upsampler", denoise, options, seeds, start, meter, noise)

    def _run(
        self,
        stage: Literal["decoder", "upsampler"],
        denoise: Denoiser,
        options: DiffusionSamplingConfig,
        seeds: list[int],
        start: Start | None,
        meter: Meter | None,
        played: PlayedNoise | None,
    ) -> Tensor:
        """One diffusion of images in [-1, 1]."""
        model = self.decoder if stage == "decoder" else self.upsampler
        assert model is not None
        shape = image_shape(model)
        noise = candidate_noise(stage_seeds(seeds, stage), shape, self.device)
        if played is not None:
            noise = played_noise(played, stage, (len(seeds), *shape))
        schedule, told = make_schedule(model.config.schedule), None if meter is None else meter.step
        if start is None:
            return sample(denoise, schedule, options.sampler, noise, told)
        known = start.at(shape[-1])
        return inpaint(denoise, schedule, options.sampler, known, noise, start.resample, told)

    def _finished(self, images: Tensor, start: Start | None) -> Tensor:
        unit = to_unit(images)
        return unit if start is None else torch.where(start.new, unit, start.image)
