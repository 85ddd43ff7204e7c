"""The networks of unCLIP in turn: embeddings to small images, these to large ones; given images to what they read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from dalle.checkpoints.unclip import UnCLIPParts
from dalle.device import device_of
from dalle.generation.diffusion.inpaint import Known, inpaint
from dalle.generation.diffusion.prediction import Denoiser
from dalle.generation.diffusion.sample import candidate_noise, sample
from dalle.generation.diffusion.spacing import spaced_steps
from dalle.generation.diffusion_decoder import (
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
from dalle.generation.unet_memory import rows_that_fit
from dalle.images.transforms import check_images, resize_batch, square_tensor
from dalle.models.clip import TextStates
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


class DiffusionStages:
    """The networks of an unCLIP, and what one call of each does.

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

    def _rows_that_fit(self, guided: bool) -> int:
        """Candidates to sample at a time."""
        return rows_that_fit(self.decoder, self.upsampler, self.autoencoder, guided)

    def _unguided_denoiser(self, z: Tensor) -> Denoiser:
        """The decoder conditioned on z only; guidance and clipping could not be inverted."""
        if isinstance(self.decoder, LatentDecoder):
            return latent_denoiser(self.decoder, z, z)  # guidance 1: the second is not called
        empty = repeated(self.clip.text_states([""]), len(z))
        return decoder_denoiser(self.decoder, z, empty, empty)

    def _to_tensors(self, images: Any) -> Tensor:
        """Given images, one or several, as float [B, 3, H, H] in [0, 1], as large as CLIP or the model needs them."""
        if isinstance(images, str) or not isinstance(images, Iterable):  # a path, and no sequence of letters
            check_images(image=images)
        images = [images] if isinstance(images, Image.Image) else list(images)
        if not images:
            raise ValueError("no image given: give at least one")
        # One crop for both; each then resizes it down to its own size
        size = max(self.image_size, self.clip.config.image_size)
        return torch.stack([square_tensor(image, size) for image in images]).to(self.device)

    def _encode(self, images: Tensor, size: int) -> Tensor:
        """Images [B, 3, H, H] in [0, 1] as the data of a diffusion of `size`: small ones in [-1, 1], or latents."""
        if self.autoencoder is None:
            return from_unit(resize_batch(images, size))
        return self.autoencoder.encode(from_unit(resize_batch(images, self.image_size)))

    def _check_embeds(self, z: Any, images: int | None = None) -> Tensor:
        """Embeddings of a call [B, D] on the model's device; of `images` given images, if they are given."""
        dim = self.clip.config.embed_dim
        if not isinstance(z, Tensor) or not z.is_floating_point():
            kind = z.dtype if isinstance(z, Tensor) else f"of type {type(z).__name__}"
            raise ValueError(f"z is {kind}: give embeddings, a tensor of floating-point numbers [B, {dim}]")
        if z.ndim != 2 or not len(z) or z.shape[1] != dim:
            raise ValueError(f"z has the shape {list(z.shape)}; embeddings of this model are [B, {dim}], B at least 1")
        if images is not None and len(z) != images:
            raise ValueError(f"{len(z)} embeddings of {images} images: give one for each")
        return z.to(self.device)

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
            denoise = latent_denoiser(self.decoder, z, nothing, options.guidance, options.latent_limit())
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
            return finite(sample(denoise, schedule, options.sampler, source, progress), stage)
        known = Known(self._encode(inpainting.image[None], shape[-1]), inpainting.mask_at(shape[-1]))
        painted = inpaint(denoise, schedule, options.sampler, known, source, inpainting.resample, progress)
        return finite(painted, stage)


def finite(images: Tensor, stage: str) -> Tensor:
    """Refuse images that a file would show as black."""
    if not images.isfinite().all():
        raise ValueError(
            f"the {stage}'s images are nan or infinite: take float32 in place of 16 bits, a lower guidance, or an "
            "earlier checkpoint of its training"
        )
    return images
