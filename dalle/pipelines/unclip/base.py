"""The parts of an unCLIP call: texts and images to embeddings, embeddings to images, images to their noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dalle.generation.diffusion.sample import Noise, SamplerConfig, candidate_noise, invert, sample_from
from dalle.generation.diffusion.spacing import check_steps
from dalle.generation.diffusion_decoder import image_shape, to_unit
from dalle.generation.prior import PriorSamplingConfig, sample_embeddings
from dalle.generation.progress import Progress
from dalle.images.transforms import to_images
from dalle.models.autoregressive_prior import AutoregressivePrior
from dalle.models.clip import TextStates
from dalle.models.diffusion_decoder import DiffusionDecoder
from dalle.models.noise_schedule import make_schedule
from dalle.pipelines.request import as_texts, check_number, check_request, check_seed, check_text
from dalle.pipelines.unclip.sampling import (
    ProgressMeter,
    Sampling,
    StageNoise,
    check_shape,
    noise_of_stage,
    stage_seeds,
)
from dalle.pipelines.unclip.stages import DiffusionStages, finite

INVERSION = SamplerConfig(sampler="ddim", steps=50)
Finished = Callable[[list[Image.Image]], object]
"""Called with images as soon as they are finished, some at a time."""
ITERATIONS = 2  # of inversion: the second recovers most of what plain DDIM inversion loses (docs/log.md)


class EmbeddingDecoder(DiffusionStages):
    """Texts and images to embeddings z, and (z, x_T) to images (arXiv 2204.06125, section 3)."""

    @torch.no_grad()
    def embed(
        self,
        prompts: str | Sequence[str],
        steps: int | None = None,
        guidance: float | None = None,
        negative: str | None = None,
        seed: int = 0,
        noise: StageNoise | None = None,
    ) -> Tensor:
        """Sample image embeddings of prompts from the prior: float32 [P, D], not normalized.

        Args:
            prompts: one or several.
            steps: of a diffusion prior; None: the model's default.
            guidance: of the prior; None: the model's default.
            negative: a prompt that guidance leads away from; None: the null caption. Unused at guidance 1.
            seed: of the first prompt; the next ones have the next seeds.
            noise: called for the noise of stage "prior" of a diffusion prior, in place of the seeds.

        Raises:
            ValueError: there is no prompt or no prior, or an option is out of range or for another kind of prior.
        """
        prompts = as_texts(prompts)
        check_request(prompts, 1, None, seed, ranks=False, negative=negative)
        if noise is not None and isinstance(self.prior, AutoregressivePrior):
            raise ValueError("noise is for a diffusion prior, and this model's is autoregressive: give a seed")
        sampling = self._sampling({"prior_steps": steps, "prior_guidance": guidance}).prior
        # A diffusion prior samples several embeddings per prompt and keeps the best (section 2.2)
        shape = (len(prompts) * sampling.samples, self.clip.config.embed_dim)
        source = None if noise is None else noise_of_stage(noise, "prior", shape)
        seeds = stage_seeds(range(seed, seed + len(prompts)), "prior")
        return self._sample_embeds(self.clip.text_states(prompts), seeds, sampling, source, negative)

    @torch.no_grad()
    def embed_images(self, images: Image.Image | Sequence[Image.Image]) -> Tensor:
        """CLIP embeddings of given images: float32 [B, D], not normalized."""
        return self._clip_embeds(self._to_tensors(images))

    @torch.no_grad()
    def decode(
        self,
        z: Tensor,
        prompts: str | Sequence[str] = "",
        steps: int | None = None,
        guidance: float | None = None,
        upsampler_steps: int | None = None,
        negative: Tensor | None = None,
        seed: int = 0,
        noise: StageNoise | None = None,
    ) -> Tensor:
        """Sample images of embeddings.

        Args:
            z: [B, D], of `embed` or `embed_images`.
            prompts: the caption of all images, or one for each; "" for none.
            steps: of the decoder; None: the model's default.
            guidance: of the decoder; None: the model's default.
            upsampler_steps: of the upsampler; None: the model's default.
            negative: for a decoder of latents: embeddings [1, D] or [B, D] that guidance leads away from, such as those
                of a negative prompt; None: the embedding of no image.
            seed: of the first image; the next ones have the next seeds.
            noise: called for the noise of stages "decoder" and "upsampler", in place of the seeds.

        Returns:
            float32 [B, 3, H, W] in [0, 1].
        """
        z = self._check_embeds(z)
        captions = as_texts(prompts) * (len(z) if isinstance(prompts, str) else 1)
        if len(captions) != len(z):
            raise ValueError(f"{len(z)} embeddings with {len(captions)} prompts: give one for each, or one for all")
        for caption in captions:
            check_text(caption)
        check_seed(seed, len(z))
        sampling = self._sampling({"steps": steps, "guidance": guidance, "upsampler_steps": upsampler_steps})
        text, seeds = self.clip.text_states(captions), list(range(seed, seed + len(z)))
        if negative is not None and isinstance(self.decoder, DiffusionDecoder):
            raise ValueError("this decoder has a learned embedding of no image: leave negative out")
        if negative is not None:
            check_shape("negative", negative, (1, z.shape[1]), (len(z), z.shape[1]))
        return self._decode(z, text, seeds, sampling, noise=noise, negative=negative)

    @torch.no_grad()
    def invert(
        self, images: Image.Image | Sequence[Image.Image], z: Tensor, steps: int = 50, iterations: int = ITERATIONS
    ) -> Tensor:
        """DDIM inversion: the noise x_T [B, 3, h, h] from which the unguided decoder reconstructs given images.

        Args:
            images: B of them; the decoder reconstructs them in its own size.
            z: their embeddings [B, D].
            steps: of DDIM; reconstruction takes as many.
            iterations: network passes per step; 1 is plain DDIM inversion.
        """
        check_number("iterations", iterations, whole=True)
        given = self._to_tensors(images)
        z = self._check_embeds(z, len(given))
        return self._invert(given, z, replace(INVERSION, steps=steps), None, iterations)

    @torch.no_grad()
    def reconstruct(self, z: Tensor, noise: Tensor, steps: int = 50) -> Tensor:
        """Images of bipartite latents by DDIM without guidance, in the decoder's size: the inverse of `invert`.

        Args:
            z: embeddings [B, D].
            noise: x_T [B, 3, h, h], of `invert`.
            steps: of DDIM, as many as of the inversion.

        Returns:
            float32 [B, 3, h, h] in [0, 1]; of a decoder of latents the decoded image.
        """
        options, z = replace(INVERSION, steps=steps), self._check_embeds(z)
        noise = check_shape("noise", noise, (len(z), *image_shape(self.decoder))).to(z)
        small = sample_from(noise, self._unguided_denoiser(z), make_schedule(self.decoder.config.schedule), options)
        return to_unit(small if self.autoencoder is None else self.autoencoder.decode(small))

    def _meter(self, progress: Progress | None, inverted: int, decoded: int, steps: int) -> ProgressMeter:
        """Counts the passes of `inverted` given images and the steps of `decoded` new ones."""
        upsampling = 0 if self.upsampler is None else self.sampling.upsampler.sampler.steps
        return ProgressMeter(progress, inverted * steps * ITERATIONS + decoded * (steps + upsampling))

    def _latents(
        self, item: Image.Image | str, seed: int, options: SamplerConfig, meter: ProgressMeter
    ) -> tuple[Tensor, Tensor]:
        """The bipartite latents of an image or a text (section 3): z [1, D] and x_T [1, 3, h, h]."""
        if isinstance(item, str):
            x_t = candidate_noise(stage_seeds([seed], "decoder"), image_shape(self.decoder), self.device)()
            return self.embed(item, seed=seed), x_t
        images = self._to_tensors(item)
        z = self._clip_embeds(images)
        return z, self._invert(images, z, options, meter)

    def _decode_latents(
        self,
        z: Tensor,
        x_t: Tensor,
        options: SamplerConfig,
        seeds: list[int],
        upsampler_seeds: list[int],
        meter: ProgressMeter,
        finished: Finished | None,
    ) -> list[Image.Image]:
        """Images of z [B, D] and x_T [B, 3, h, h], without guidance, as DDIM inversion is the inverse of that."""
        images: list[Image.Image] = []
        rows = self._rows_that_fit(guided=False)
        for first in range(0, len(z), rows):
            part = slice(first, first + rows)
            meter.rows = len(seeds[part])
            noise = candidate_noise(stage_seeds(seeds[part], "decoder"), image_shape(self.decoder), self.device)
            schedule = make_schedule(self.decoder.config.schedule)
            small = sample_from(x_t[part], self._unguided_denoiser(z[part]), schedule, options, noise, meter.step)
            small = finite(small, "decoder")
            large = self._upsample(small, upsampler_seeds[part], self.sampling.upsampler, meter=meter)
            images += to_images(to_unit(large))
            if finished is not None:
                finished(images[first:])
        return images

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Check the options of a call before anything is sampled.

        Raises:
            ValueError: as for a call.
        """
        self._sampling(options)

    def _sampling(self, options: Mapping[str, Any]) -> Sampling:
        """The sampling options of a call, which the parts of this model must have.

        Raises:
            ValueError: an option does not exist, is out of range, or is one of a part that this model does not have.
        """
        parts = set() if self.upsampler is None else {"an upsampler"}
        if self.prior is not None:
            autoregressive = isinstance(self.prior, AutoregressivePrior)
            parts.add("an autoregressive prior" if autoregressive else "a diffusion prior")
        sampling = self.sampling.updated(options, parts)
        # Before anything is sampled: those of the upsampler would be noticed when all else is done
        for name, model in (("prior_steps", self.prior), ("steps", self.decoder), ("upsampler_steps", self.upsampler)):
            steps = options.get(name)
            if steps is not None and model is not None and not isinstance(model, AutoregressivePrior):
                check_steps(len(make_schedule(model.config.schedule)), steps, name)
        return sampling

    def _sample_embeds(
        self,
        text: TextStates,
        seeds: list[int],
        options: PriorSamplingConfig,
        noise: Noise | None = None,
        negative: str | None = None,
    ) -> Tensor:
        """Captions to embeddings [B, D]."""
        if self.prior is None:
            raise ValueError("this model has no prior, so it makes images of images alone: vary or blend some")
        nothing = None
        # CLIP must read the null caption where it is a text: the empty one, or a negative prompt
        if negative is not None or self.prior.config.null_caption == "empty":
            nothing = self.clip.text_states([negative or ""])
        return sample_embeddings(self.prior, text, seeds, options, noise, nothing)

    def _invert(
        self,
        images: Tensor,
        z: Tensor,
        options: SamplerConfig,
        meter: ProgressMeter | None,
        iterations: int = ITERATIONS,
    ) -> Tensor:
        small = self._encode(images, self.base_size)
        schedule = make_schedule(self.decoder.config.schedule)
        if meter is not None:
            meter.rows = iterations
        step = None if meter is None else meter.step
        return invert(small, self._unguided_denoiser(z), schedule, options, iterations, step)
