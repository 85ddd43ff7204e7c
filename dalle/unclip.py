"""UnCLIP (DALL-E 2): text to embedding to image, and images changed through their embedding and their noise.

Ramesh et al. 2022, "Hierarchical Text-Conditional Image Generation with CLIP Latents" (arXiv 2204.06125).

Letters: P prompts, B candidates of all prompts, D embedding, H W pixels. An image is told by its embedding z, which
says what CLIP sees in it, and the noise x_T, which says the rest (section 3).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dalle.checkpoints.unclip import UnCLIPParts, load_unclip
from dalle.device import device_of, pick_device
from dalle.generation.decoder import (
    DiffusionSamplingConfig,
    decoder_denoiser,
    from_unit,
    image_shape,
    repeated,
    to_unit,
    upsampler_denoiser,
)
from dalle.generation.diffusion.inpaint import Known, inpaint
from dalle.generation.diffusion.prediction import Denoiser
from dalle.generation.diffusion.sample import Noise, SamplerConfig, candidate_noise, invert, sample, sample_from
from dalle.generation.options import SamplingConfig, UnCLIPOptions
from dalle.generation.prior import PriorSamplingConfig, draw_embeddings
from dalle.generation.rerank import score
from dalle.generation.slerp import blend, check_weights, slerp, text_difference
from dalle.images.transforms import redrawn_pixels, resize_batch, square_tensor
from dalle.models.clip import TextStates
from dalle.models.noise_schedule import make_schedule
from dalle.pipeline import Progress, Result, check_request, ranked

Stage = Literal["prior", "decoder", "upsampler"]
PlayedNoise = Callable[[Stage, tuple[int, ...]], Tensor]
"""Gives the numbers of a stage, of a shape [B, ...], in the order in which they are used."""
INVERSION = SamplerConfig(sampler="ddim", steps=50)
_ITERATIONS = 2  # of inversion: what plain DDIM inversion loses comes back (docs/log.md)
_BATCH = 16  # candidates at a time


class UnCLIP:
    """Text to image by a prior and diffusions, and changes of given images.

    Attributes:
        clip: what embeddings are of.
        prior: caption to image embedding.
        decoder: image embedding to small image.
        upsampler: small image to large one; None: there is none.
        judge: the CLIP that ranks candidates.
        prior_sampling: how each part is sampled if nothing else is said; so are `decoder_sampling` and
            `upsampler_sampling`.
        model_hash: sha256 of the folder.
        image_size: height and width of the images, in pixels.
    """

    def __init__(self, parts: UnCLIPParts):
        self.clip, self.prior, self.decoder, self.upsampler = parts.clip, parts.prior, parts.decoder, parts.upsampler
        self.judge, self.model_hash = parts.judge, parts.model_hash
        self.prior_sampling, self.decoder_sampling = parts.prior_sampling, parts.decoder_sampling
        self.upsampler_sampling = parts.upsampler_sampling
        self.base_size = parts.decoder.config.image_size
        self.image_size = self.base_size if parts.upsampler is None else parts.upsampler.config.image_size

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        prior: str | Path | None = None,
        device: str | torch.device = "auto",
        dtype: torch.dtype | None = None,
        clip: str | Path | None = None,
    ) -> UnCLIP:
        """Load an unCLIP with all its parts.

        Args:
            source: folder that `python -m dalle assemble` wrote, or its hub id.
            prior: another prior, of the same CLIP.
            device: "auto" takes an accelerator if there is one.
            dtype: arithmetic of decoder and upsampler; None is float32. Prior and CLIP stay in float32.
            clip: source of a CLIP that ranks instead of the model's own.

        Raises:
            ValueError: nothing is there, something does not fit, or there is no such device.
        """
        return cls(load_unclip(source, prior, pick_device(device), dtype, clip))

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return device_of(self.decoder)

    @torch.no_grad()
    def __call__(
        self,
        prompts: str | Sequence[str],
        n: int = 1,
        keep: int | None = None,
        seed: int = 0,
        image: Image.Image | None = None,
        mask: Image.Image | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> list[Result]:
        """Sample `n` candidates for each prompt and keep the best `keep`, as `TextToImage` does.

        Args:
            prompts: one or several.
            n: candidates of each prompt. Candidate i has the seed `seed + i`: alone with it, it is the same image.
            keep: how many to return; None returns all.
            seed: of the first candidate, 0 or more.
            image: an image of which a part is made anew; its middle square is brought to the model's size.
            mask: white where it is new, of the size of `image`. Elsewhere the pixels of `image` are returned as they
                are; what is new sees all of them, on all sides.
            progress: called after each step.
            options: fields of `UnCLIPOptions`, and of `SamplingConfig` guidance (of the decoder) and, for an
                autoregressive prior, temperature and top_k.

        Returns:
            One result for each prompt.

        Raises:
            ValueError: an option is out of range, or options do not go together.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        keep = check_request(prompts, n, keep, seed, True)
        sampling = self._settled(options)
        start = self._start(image, mask, options.get("resample"))
        rows = [(prompt, seed + i) for prompt in prompts for i in range(n)]
        meter = _Meter(progress, len(rows), sampling.passes(self))
        pixels, scores = [], []
        for first in range(0, len(rows), _BATCH):
            part = rows[first : first + _BATCH]
            names, seeds = [name for name, _ in part], [own for _, own in part]
            meter.rows = len(part)
            text = self.clip.text_states(names)
            z = draw_embeddings(self.prior, text, _seeds(seeds, "prior"), sampling.prior)
            images = self._images(z, text, seeds, sampling, start, meter)
            pixels.append((images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu())
            scores.append(score(self.judge, images, names))
        every, ranks = torch.cat(pixels), torch.cat(scores)
        parts = [slice(i * n, (i + 1) * n) for i in range(len(prompts))]
        return [
            ranked(prompt, every[part], ranks[part], None, seed, keep)
            for prompt, part in zip(prompts, parts, strict=True)
        ]

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
        sampling = self._settled({name: value for name, value in options.items() if value is not None}).prior
        shape = (len(prompts) * sampling.samples, self.clip.config.embed_dim)
        played = None if noise is None else _played(noise, "prior", shape)
        seeds = _seeds(range(seed, seed + len(prompts)), "prior")
        return draw_embeddings(self.prior, self.clip.text_states(prompts), seeds, sampling, played)

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
        sampling = self._settled({name: value for name, value in options.items() if value is not None})
        text, seeds = self.clip.text_states(names), list(range(seed, seed + len(z)))
        return self._images(z.to(self.device), text, seeds, sampling, noise=noise)

    @torch.no_grad()
    def invert(
        self, images: Image.Image | Sequence[Image.Image], z: Tensor, steps: int = 50, iterations: int = _ITERATIONS
    ) -> Tensor:
        """The noise x_T [B, 3, h, h] from which the decoder, told z and no guidance, gives given images back.

        Args:
            images: B of them; the decoder knows them in its own size.
            z: their embeddings [B, D].
            steps: of DDIM, to be taken back with as many.
            iterations: passes for each step; 1 is plain DDIM inversion.
        """
        return self._inverted(self._tensors(images), z, replace(INVERSION, steps=steps), iterations)

    @torch.no_grad()
    def vary(
        self, image: Image.Image, n: int = 4, eta: float = 0.5, seed: int = 0, steps: int = 50
    ) -> list[Image.Image]:
        """Other images that say the same (section 3.1): z and x_T stay, and noise is added on the way.

        Args:
            image: to be varied; its middle square is used.
            n: how many.
            eta: 0 gives the image back, 1 makes new all that its embedding does not say.
            seed: of the first; the others follow.
            steps: of inversion and sampling.
        """
        if n < 1:
            raise ValueError(f"n is {n}: sample at least 1")
        options = replace(INVERSION, steps=steps, eta=eta)
        given = self._tensors(image)
        z = self._embedded(given)
        start = self._inverted(given, z, replace(INVERSION, steps=steps), _ITERATIONS)
        seeds = list(range(seed, seed + n))
        each, starts = z.expand(n, -1), start.expand(n, -1, -1, -1)
        return self._walked(each, starts, options, seeds, upsampler_seeds=seeds)

    @torch.no_grad()
    def blend(
        self,
        items: Sequence[Image.Image | str],
        weights: Sequence[float] | None = None,
        frames: int = 9,
        seed: int = 0,
        steps: int = 50,
    ) -> list[Image.Image]:
        """What lies between images and texts (section 3.2), by slerp of both z and x_T.

        Args:
            items: images, or texts that the prior embeds; x_T of a text is drawn.
            weights: of each item, for one image of all of them; None: `frames` images from the first of two to the
                other, whose ends give both back.
            frames: how many images without weights, at least 2.
            seed: of what is drawn.
            steps: of inversion and sampling.
        """
        if len(items) < 2:
            raise ValueError(f"a blend is of 2 or more images and texts, got {len(items)}")
        if weights is None and len(items) > 2:
            raise ValueError(f"{len(items)} images and texts need weights: frames lie between two")
        if weights is None and frames < 2:
            raise ValueError(f"frames is {frames}; a blend has at least 2")
        if weights is not None and len(weights) != len(items):
            raise ValueError(f"{len(items)} images and texts with {len(weights)} weights: give each one")
        if weights is not None:
            check_weights(weights)
        options = replace(INVERSION, steps=steps)
        found = [self._located(item, seed + number, options) for number, item in enumerate(items)]
        vectors, noises = [z for z, _ in found], [start for _, start in found]
        if weights is not None:
            z, starts = blend(vectors, weights), blend(noises, weights)
        else:
            shares = [frame / (frames - 1) for frame in range(frames)]
            z = torch.cat([slerp(vectors[0], vectors[1], share) for share in shares])
            starts = torch.cat([slerp(noises[0], noises[1], share) for share in shares])
        return self._walked(z, starts, options, [seed] * len(z), upsampler_seeds=[seed] * len(z))

    @torch.no_grad()
    def edit(
        self, image: Image.Image, before: str, after: str, theta: float = 0.35, frames: int = 1, steps: int = 50
    ) -> list[Image.Image]:
        """An image turned the way from one text to another (section 3.3); x_T stays.

        Args:
            image: to be changed; its middle square is used.
            before: what it shows, or any caption such as "a photo".
            after: what it is to show.
            theta: how far; the paper goes to 0.25 to 0.5.
            frames: images from 0 to theta, the last at theta; 1 is the last alone.
            steps: of inversion and sampling.
        """
        if frames < 1:
            raise ValueError(f"frames is {frames}: sample at least 1")
        options, given = replace(INVERSION, steps=steps), self._tensors(image)
        z = self._embedded(given)
        old, new = self.clip.encode_text([before, after], normalize=False)
        shares = [theta * frame / (frames - 1) for frame in range(frames)] if frames > 1 else [theta]
        turned = torch.cat([text_difference(z, old, new, share) for share in shares])
        start = self._inverted(given, z, options, _ITERATIONS)
        return self._walked(turned, start.expand(frames, -1, -1, -1), options, [0] * frames, [0] * frames)

    def _located(self, item: Image.Image | str, seed: int, options: SamplerConfig) -> tuple[Tensor, Tensor]:
        """z [1, D] and x_T [1, 3, h, h] of an image or a text."""
        if isinstance(item, str):
            start = candidate_noise(_seeds([seed], "decoder"), image_shape(self.decoder), self.device)()
            return self.embed(item, seed=seed), start
        given = self._tensors(item)
        z = self._embedded(given)
        return z, self._inverted(given, z, options, _ITERATIONS)

    def _walked(
        self, z: Tensor, starts: Tensor, options: SamplerConfig, seeds: list[int], upsampler_seeds: list[int]
    ) -> list[Image.Image]:
        """Images from z and x_T, without guidance, as inversion went."""
        images = []
        for first in range(0, len(z), _BATCH):
            part = slice(first, first + _BATCH)
            noise = candidate_noise(_seeds(seeds[part], "decoder"), image_shape(self.decoder), self.device)
            schedule = make_schedule(self.decoder.config.schedule)
            low = sample_from(starts[part], self._plain(z[part]), schedule, options, noise)
            large = self._upsampled(low, upsampler_seeds[part], self.upsampler_sampling)
            pixels = (to_unit(large) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()
            images += [Image.fromarray(one.numpy()) for one in pixels]
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
        sampling: _Sampling,
        start: _Start | None = None,
        meter: _Meter | None = None,
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
        start: _Start | None = None,
        meter: _Meter | None = None,
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
        start: _Start | None,
        meter: _Meter | None,
        played: PlayedNoise | None,
    ) -> Tensor:
        """One diffusion of images in [-1, 1]."""
        model = self.decoder if stage == "decoder" else self.upsampler
        assert model is not None
        shape = image_shape(model)
        noise = candidate_noise(_seeds(seeds, stage), shape, self.device)
        if played is not None:
            noise = _played(played, stage, (len(seeds), *shape))
        schedule, told = make_schedule(model.config.schedule), None if meter is None else meter.step
        if start is None:
            return sample(denoise, schedule, options.sampler, noise, told)
        known = start.at(shape[-1])
        return inpaint(denoise, schedule, options.sampler, known, noise, start.resample, told)

    def _finished(self, images: Tensor, start: _Start | None) -> Tensor:
        unit = to_unit(images)
        return unit if start is None else torch.where(start.new, unit, start.image)

    def _start(self, image: Image.Image | None, mask: Image.Image | None, resample: int | None) -> _Start | None:
        """What is kept of a given image."""
        if image is None and mask is None:
            if resample is not None:
                raise ValueError("resample is for a mask: give an image and a mask, or leave it out")
            return None
        if image is None or mask is None:
            raise ValueError("image and mask go together: the mask is white where the image is made anew")
        if mask.size != image.size:
            raise ValueError(
                f"mask is {mask.width}x{mask.height} and image {image.width}x{image.height}: give a mask of the "
                "image's size"
            )
        new = redrawn_pixels(mask, self.image_size).to(self.device)
        return _Start(square_tensor(image, self.image_size).to(self.device), new, 1 if resample is None else resample)

    def _settled(self, options: dict[str, Any]) -> _Sampling:
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
        prior, decoder, upsampler = self.prior_sampling, self.decoder_sampling, self.upsampler_sampling
        decoder = replace(
            decoder, sampler=decoder.sampler.updated(**walk), guidance=given.get("guidance", decoder.guidance)
        )
        if "upsampler_steps" in given:
            upsampler = replace(upsampler, sampler=upsampler.sampler.updated(steps=given["upsampler_steps"]))
        if "prior_steps" in given:
            prior = replace(prior, sampler=prior.sampler.updated(steps=given["prior_steps"]))
        own = {"guidance": "prior_guidance", "samples": "prior_samples", "temperature": "temperature", "top_k": "top_k"}
        prior = replace(prior, **{name: given[key] for name, key in own.items() if key in given})
        return _Sampling(prior, decoder, upsampler)


@dataclass(frozen=True)
class _Sampling:
    """How each part is sampled."""

    prior: PriorSamplingConfig
    decoder: DiffusionSamplingConfig
    upsampler: DiffusionSamplingConfig

    def passes(self, pipe: UnCLIP) -> int:
        """Steps that a candidate takes through decoder and upsampler."""
        return self.decoder.sampler.steps + (0 if pipe.upsampler is None else self.upsampler.sampler.steps)


@dataclass(frozen=True)
class _Start:
    """A given image of which a part is made anew."""

    image: Tensor  # [3, H, W] in [0, 1]
    new: Tensor  # bool [H, W]
    resample: int

    def at(self, size: int) -> Known:
        """What is known in another size; a pixel is new if any that it stands for is."""
        unknown = F.adaptive_max_pool2d(self.new[None].float(), size) > 0
        return Known(from_unit(resize_batch(self.image[None], size)), unknown)


class _Meter:
    """Steps of all candidates, for a progress bar."""

    def __init__(self, progress: Progress | None, candidates: int, passes: int):
        self._progress, self._total, self._done = progress, candidates * passes, 0
        self.rows = 1  # candidates of the batch at hand

    def step(self, _done: int, _all: int) -> None:
        """A step of a batch is done."""
        self._done += self.rows
        if self._progress is not None:
            self._progress(self._done, self._total)


def _played(noise: PlayedNoise, stage: Stage, shape: tuple[int, ...]) -> Noise:
    return lambda: noise(stage, shape)


def _seeds(seeds: Sequence[int], stage: Stage) -> list[int]:
    """Seeds of a stage: a candidate's noise of one is not that of another."""
    digests = (hashlib.blake2b(f"{seed}/{stage}".encode(), digest_size=8).digest() for seed in seeds)
    return [int.from_bytes(digest, "big") >> 1 for digest in digests]
