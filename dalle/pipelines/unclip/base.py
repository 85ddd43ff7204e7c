"""The stages of unCLIP: texts and images to embeddings, embeddings to images, images to their noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

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
    latent_denoiser,
    no_image_embed,
    repeated,
    to_unit,
    upsampler_denoiser,
)
from dalle.generation.diffusion.inpaint import Known, inpaint
from dalle.generation.diffusion.prediction import Denoiser
from dalle.generation.diffusion.sample import Noise, SamplerConfig, candidate_noise, invert, sample, sample_from
from dalle.generation.diffusion.spacing import spaced_steps
from dalle.generation.prior import PriorSamplingConfig, sample_embeddings
from dalle.generation.unet_memory import rows_that_fit
from dalle.images.transforms import resize_batch, square_tensor, to_images
from dalle.models.autoregressive_prior import AutoregressivePrior
from dalle.models.clip import TextStates
from dalle.models.diffusion_decoder import DiffusionDecoder
from dalle.models.latent_decoder import LatentDecoder
from dalle.models.noise_schedule import make_schedule
from dalle.pipelines.unclip.sampling import (
    Inpainting,
    ProgressMeter,
    Sampling,
    StageNoise,
    noise_of_stage,
    stage_seeds,
)

INVERSION = SamplerConfig(sampler="ddim", steps=50)
ITERATIONS = 2  # of inversion: the second recovers most of what plain DDIM inversion loses (docs/log.md)


class EmbeddingDecoder:
    """Texts and images to embeddings z, and (z, x_T) to images (arXiv 2204.06125, section 3).

    Attributes:
        clip: the CLIP of the embeddings.
        prior: caption to image embedding; None: there is none, as in Karlo's image variations.
        decoder: image embedding to small image, or to latents.
        upsampler: small image to large one; None: there is none.
        upsampler_last: the network of the upsampler's last step; None: the upsampler itself.
        autoencoder: latents to image and back; None: the decoder generates images.
        sampling: default sampling options of each stage.
        base_size: height and width of the decoder's images in pixels, or of its latents.
        image_size: height and width of the finished images in pixels.
    """

    def __init__(self, parts: UnCLIPParts):
        self.clip, self.prior, self.decoder, self.upsampler = parts.clip, parts.prior, parts.decoder, parts.upsampler
        self.upsampler_last, self.autoencoder = parts.upsampler_last, parts.autoencoder
        self.sampling = Sampling(parts.prior_sampling, parts.decoder_sampling, parts.upsampler_sampling)
        self.base_size = parts.decoder.config.image_size
        self.image_size = self.base_size if parts.upsampler is None else parts.upsampler.config.image_size
        if parts.autoencoder is not None:
            self.image_size = self.base_size * parts.autoencoder.config.factor

    @property
    def device(self) -> torch.device:
        """The device of the models."""
        return device_of(self.decoder)

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
            noise: called for the noise of stage "prior", in place of the seeds.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
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
        captions = [prompts] * len(z) if isinstance(prompts, str) else list(prompts)
        if len(captions) != len(z):
            raise ValueError(f"{len(z)} embeddings with {len(captions)} prompts: give one for each, or one for all")
        sampling = self._sampling({"steps": steps, "guidance": guidance, "upsampler_steps": upsampler_steps})
        text, seeds = self.clip.text_states(captions), list(range(seed, seed + len(z)))
        if negative is not None and isinstance(self.decoder, DiffusionDecoder):
            raise ValueError("this decoder has a learned embedding of no image: leave negative out")
        return self._decode(z.to(self.device), text, seeds, sampling, noise=noise, negative=negative)

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
        return self._invert(self._to_tensors(images), z, replace(INVERSION, steps=steps), iterations)

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
        options = replace(INVERSION, steps=steps)
        small = sample_from(noise, self._unguided_denoiser(z), make_schedule(self.decoder.config.schedule), options)
        return to_unit(small if self.autoencoder is None else self.autoencoder.decode(small))

    def _latents(self, item: Image.Image | str, seed: int, options: SamplerConfig) -> tuple[Tensor, Tensor]:
        """The bipartite latents of an image or a text (section 3): z [1, D] and x_T [1, 3, h, h]."""
        if isinstance(item, str):
            x_t = candidate_noise(stage_seeds([seed], "decoder"), image_shape(self.decoder), self.device)()
            return self.embed(item, seed=seed), x_t
        images = self._to_tensors(item)
        z = self._clip_embeds(images)
        return z, self._invert(images, z, options, ITERATIONS)

    def _decode_latents(
        self, z: Tensor, x_t: Tensor, options: SamplerConfig, seeds: list[int], upsampler_seeds: list[int]
    ) -> list[Image.Image]:
        """Images of z [B, D] and x_T [B, 3, h, h], without guidance, as DDIM inversion is the inverse of that."""
        images: list[Image.Image] = []
        rows = self._rows_that_fit(guided=False)
        for first in range(0, len(z), rows):
            part = slice(first, first + rows)
            noise = candidate_noise(stage_seeds(seeds[part], "decoder"), image_shape(self.decoder), self.device)
            schedule = make_schedule(self.decoder.config.schedule)
            small = sample_from(x_t[part], self._unguided_denoiser(z[part]), schedule, options, noise)
            small = _finite(small, "decoder")
            large = self._upsample(small, upsampler_seeds[part], self.sampling.upsampler)  # [b, 3, H, H]
            images += to_images(to_unit(large))
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
        return self.sampling.updated(options, parts)

    def _rows_that_fit(self, guided: bool) -> int:
        """Candidates to sample at a time."""
        return rows_that_fit(self.decoder, self.upsampler, self.autoencoder, guided)

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

    def _unguided_denoiser(self, z: Tensor) -> Denoiser:
        """The decoder conditioned on z only; guidance and clipping could not be inverted."""
        if isinstance(self.decoder, LatentDecoder):
            return latent_denoiser(self.decoder, z, z)  # guidance 1: the second is not called
        empty = repeated(self.clip.text_states([""]), len(z))
        return decoder_denoiser(self.decoder, z, empty, empty)

    def _invert(self, images: Tensor, z: Tensor, options: SamplerConfig, iterations: int) -> Tensor:
        small = self._encode(images, self.base_size)
        schedule = make_schedule(self.decoder.config.schedule)
        return invert(small, self._unguided_denoiser(z), schedule, options, iterations)

    def _to_tensors(self, images: Image.Image | Sequence[Image.Image]) -> Tensor:
        """Given images as float [B, 3, H, H] in [0, 1], as large as CLIP or the model needs them."""
        images = [images] if isinstance(images, Image.Image) else list(images)
        # One crop for both; each then resizes it down to its own size
        size = max(self.image_size, self.clip.config.image_size)
        return torch.stack([square_tensor(image, size) for image in images]).to(self.device)

    def _encode(self, images: Tensor, size: int) -> Tensor:
        """Images [B, 3, H, H] in [0, 1] as the data of a diffusion of `size`: small ones in [-1, 1], or latents."""
        if self.autoencoder is None:
            return from_unit(resize_batch(images, size))
        return self.autoencoder.encode(from_unit(resize_batch(images, self.image_size)))

    def _clip_embeds(self, images: Tensor) -> Tensor:
        if self.clip.config.missing == "image":
            raise ValueError(
                "this model's CLIP has no image tower, so it cannot vary, blend or edit given images: take a model "
                "with both towers, such as karlo-v1-alpha-image-variations"
            )
        return self.clip.encode_image(resize_batch(images, self.clip.config.image_size), normalize=False)

    def _decode(
        self,
        z: Tensor,
        text: TextStates,
        seeds: list[int],
        sampling: Sampling,
        inpainting: Inpainting | None = None,
        meter: ProgressMeter | None = None,
        noise: StageNoise | None = None,
        negative: Tensor | None = None,
    ) -> Tensor:
        """Embeddings [B, D] and captions to images [B, 3, H, H] in [0, 1]."""
        options = sampling.decoder
        if isinstance(self.decoder, LatentDecoder):
            nothing = no_image_embed(self.clip) if negative is None else negative.to(z)
            denoise = latent_denoiser(self.decoder, z, nothing, options.guidance, options.limit())
        else:
            empty = self.clip.text_states([""])
            denoise = decoder_denoiser(self.decoder, z, text, empty, options.guidance, options.limit())
        small = self._sample("decoder", denoise, options, seeds, inpainting, meter, noise)
        images = to_unit(self._upsample(small, seeds, sampling.upsampler, inpainting, meter, noise))
        # Known pixels are copied: the conversion to [-1, 1] and back may change their last bits
        return images if inpainting is None else torch.where(inpainting.mask, images, inpainting.image)

    def _upsample(
        self,
        small: Tensor,
        seeds: list[int],
        options: DiffusionSamplingConfig,
        inpainting: Inpainting | None = None,
        meter: ProgressMeter | None = None,
        noise: StageNoise | None = None,
    ) -> Tensor:
        """Small images in [-1, 1], or latents, to large images; without an upsampler, themselves."""
        if self.autoencoder is not None:
            return self.autoencoder.decode(small)
        if self.upsampler is None:
            return small
        last = None
        if self.upsampler_last is not None:
            total, sampler = self.upsampler.config.schedule.steps, options.sampler
            # The step that it takes
            last = self.upsampler_last, spaced_steps(total, sampler.steps, sampler.spacing)[-1]
        denoise = upsampler_denoiser(self.upsampler, small, options.limit(), last)
        return self._sample("upsampler", denoise, options, seeds, inpainting, meter, noise)

    def _sample(
        self,
        stage: Literal["decoder", "upsampler"],
        denoise: Denoiser,
        options: DiffusionSamplingConfig,
        seeds: list[int],
        inpainting: Inpainting | None,
        meter: ProgressMeter | None,
        noise: StageNoise | None,
    ) -> Tensor:
        """Run the diffusion of one stage; returns images in [-1, 1]."""
        model = self.decoder if stage == "decoder" else self.upsampler
        assert model is not None
        shape = image_shape(model)
        # One generator per candidate and stage: a candidate does not depend on its batch
        source = candidate_noise(stage_seeds(seeds, stage), shape, self.device)
        if noise is not None:  # another implementation's numbers, to compare with it image by image
            source = noise_of_stage(noise, stage, (len(seeds), *shape))
        schedule, progress = make_schedule(model.config.schedule), None if meter is None else meter.step
        if inpainting is None:
            return _finite(sample(denoise, schedule, options.sampler, source, progress), stage)
        known = Known(self._encode(inpainting.image[None], shape[-1]), inpainting.mask_at(shape[-1]))
        painted = inpaint(denoise, schedule, options.sampler, known, source, inpainting.resample, progress)
        return _finite(painted, stage)


def _finite(images: Tensor, stage: str) -> Tensor:
    """Refuse images that a file would show as black."""
    if not images.isfinite().all():
        raise ValueError(
            f"the {stage}'s images are nan or infinite: take float32 in place of 16 bits, a lower guidance, or an "
            "earlier checkpoint of its training"
        )
    return images
