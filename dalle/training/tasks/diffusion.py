"""Stage diffusion: trains unCLIP's decoder, from CLIP image embeddings to images, and its upsampler (arXiv 2204.06125).

Shapes: B images of a batch, H height and width in pixels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.checkpoints import model_folder
from dalle.checkpoints.hub import resolve
from dalle.checkpoints.lazy_tensor import Tensors
from dalle.checkpoints.load import load_clip
from dalle.config import to_dict
from dalle.data.batch import Batch
from dalle.data.token_shards.dataset import EmbeddedImageShardsConfig
from dalle.device import to_device
from dalle.evaluation.metrics import psnr
from dalle.generation.diffusion.prediction import Denoiser, denoised_rows, target
from dalle.generation.diffusion.sample import candidate_noise, sample
from dalle.generation.diffusion_decoder import (
    decoder_denoiser,
    from_unit,
    image_shape,
    repeated,
    to_unit,
    upsampler_denoiser,
)
from dalle.images.grid import image_grid
from dalle.images.transforms import gaussian_blur, resize_batch
from dalle.models.clip import TextStates
from dalle.models.diffusion_decoder import DecoderConfig, DiffusionDecoder
from dalle.models.noise_schedule import make_schedule
from dalle.models.upsampler import Upsampler, UpsamplerConfig, enlarged
from dalle.training.init_from import load_initial_unclip
from dalle.training.losses.diffusion import min_snr_weights, variational_bound
from dalle.training.recipe import DiffusionRecipe, tokens_per_image
from dalle.training.tasks.base import Phase, Samples, Task
from dalle.training.tasks.clip_space import check_clip, training_embeddings
from dalle.training.tasks.pair_random import PairRandom

_STREAM = 3  # separates the random numbers of the noise from others with the same seed
_SAMPLED = 16  # images sampled per validation; each takes many forward passes
_GOLDEN = 0.6180339887498949  # multiples of the golden ratio modulo 1 are evenly spread, however many there are


@dataclass
class Inputs:
    """A micro-batch."""

    images: Tensor  # [B, 3, H, H] in [-1, 1]
    time: Tensor  # [B] in [0, 1), diffusion time as a fraction of the schedule
    noise: Tensor  # like images
    condition: tuple[Any, ...]  # further arguments of the network


class DiffusionTask(Task):
    """The common part of both models: noise, losses, metrics of sampled images."""

    model: DiffusionDecoder | Upsampler

    def __init__(self, recipe: DiffusionRecipe, model: DiffusionDecoder | Upsampler, device: torch.device):
        if recipe.init_from is not None:
            load_initial_unclip(model, recipe)
        self.recipe, self.device, self.model = recipe, device, model.to(device)
        self.schedule = make_schedule(model.config.schedule)
        self.state = nn.ModuleDict({"model": self.model})
        self.phases = [Phase("diffusion", self.model, recipe.optim)]
        self.tokens_per_image = tokens_per_image(recipe)

    @abstractmethod
    def _condition(self, batch: Batch) -> tuple[Tensor, tuple[Any, ...]]:
        """Clean images [B, 3, H, H] in [-1, 1] and their conditioning, without dropout."""

    @abstractmethod
    def _sample_and_compare(self, model: nn.Module, batch: Batch) -> tuple[list[Tensor], dict[str, float]]:
        """Sample images for a batch; returns columns of images in [0, 1], the sampled ones last, and their metrics."""

    def loss(self, phase: Phase, inputs: Inputs, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted squared error of the prediction; with a learned variance also the variational bound."""
        config = self.model.config
        steps = (inputs.time * len(self.schedule)).long()  # [B]
        noised = self.schedule.add_noise(inputs.images, inputs.noise, steps)
        output = self.model(noised, steps, *inputs.condition)
        mean, variance = output.chunk(2, dim=1) if config.learned_variance else (output, None)
        targets = target(config.predicts, self.schedule, inputs.images, inputs.noise, steps)
        errors = (mean - targets).square().flatten(1).mean(1)  # [B]
        logs = {"mse": errors.mean()}
        if self.recipe.loss_weight == "min_snr":
            errors = errors * min_snr_weights(self.schedule, steps, config.predicts, self.recipe.snr_gamma)
        total = errors.mean()
        if variance is not None:
            # The mean is detached: the bound trains the variance only (arXiv 2102.09672, section 3.1)
            predicted_x0 = denoised_rows(config.predicts, self.schedule, steps, noised, mean.detach())
            bound = variational_bound(self.schedule, inputs.images, noised, steps, predicted_x0, variance).mean()
            logs["bits"] = bound * len(self.schedule)  # one random step estimates the sum over all
            total = total + self.recipe.bound_weight * logs["bits"]
        return total, logs

    @torch.no_grad()
    def validate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Mean squared error over all images, each at a fixed step with fixed noise; metrics of some sampled images."""
        errors: list[Tensor] = []
        metrics: dict[str, float] = {}
        for batch in batches:
            first = len(errors)
            count = len(batch.captions)
            images, condition = self._condition(batch)
            # Step and noise depend on the place in the validation split only, so that validations can be compared
            time = (torch.arange(first, first + count) + 1) * _GOLDEN % 1
            noise = candidate_noise(range(first, first + count), images.shape[1:], self.device)()
            steps = (time.to(self.device) * len(self.schedule)).long()
            output = model(self.schedule.add_noise(images, noise, steps), steps, *condition)[
                :, :3
            ]  # without the variance
            targets = target(self.model.config.predicts, self.schedule, images, noise, steps)
            errors += (output - targets).square().flatten(1).mean(1).unbind()
            if not first:
                metrics = self._sample_and_compare(model, batch.part(slice(_SAMPLED)))[1]
        return {"mse": torch.stack(errors).mean().item()} | metrics

    @torch.no_grad()
    def sample_images(self, model: nn.Module, batch: Batch) -> Samples:
        """Sample the first validation images, with the same seeds each time."""
        columns, metrics = self._sample_and_compare(model, batch.part(slice(_SAMPLED)))
        return Samples(image_grid(columns), metrics)

    def _sample(self, denoise: Denoiser, count: int) -> Tensor:
        """Sample `count` images in [0, 1], with the same seeds each time."""
        noise = candidate_noise(range(count), image_shape(self.model), self.device)
        return to_unit(sample(denoise, self.schedule, self.recipe.sampling.sampler, noise))

    def _config(self) -> dict[str, Any]:
        recipe = self.recipe
        return {"stage": recipe.stage, "model": to_dict(recipe.model), "sampling": to_dict(recipe.sampling)}


class DecoderTask(DiffusionTask):
    """Trains the decoder, conditioned on a CLIP image embedding and the caption."""

    model: DiffusionDecoder

    def __init__(self, recipe: DiffusionRecipe, device: torch.device):
        assert isinstance(recipe.model, DecoderConfig) and recipe.clip is not None
        self.clip = load_clip(recipe.clip, device).requires_grad_(False)
        check_clip(recipe.model, self.clip, recipe.clip)
        if isinstance(recipe.data, EmbeddedImageShardsConfig):
            recipe.data.check_clip(model_folder.folder_hash(resolve(recipe.clip)), recipe.clip, recipe.model.image_size)
        super().__init__(recipe, DiffusionDecoder(recipe.model), device)
        self.image_size = max(self.clip.config.image_size, recipe.model.image_size)  # enough pixels for both
        if recipe.init_from is None:  # else its weights know the statistics they were trained with
            self.model.fit(training_embeddings(self.clip, recipe.data, recipe.statistics_images, device)[0])

    def inputs(self, batch: Batch) -> Inputs:
        """Embed images and captions, and drop each with some probability; randomness comes from each pair's seed."""
        # The same numbers, however a batch is split
        recipe, random = self.recipe, PairRandom(batch.seeds, _STREAM, self.device)
        time, drop_embedding, drop_caption = random.uniform(3).unbind(1)
        noise = random.normal(*image_shape(self.model))
        captions = [
            "" if dropped else caption
            for caption, dropped in zip(batch.captions, (drop_caption < recipe.caption_dropout).tolist(), strict=True)
        ]
        images, (embeds, text) = self._condition(replace(batch, captions=captions), recipe.bpe_dropout)
        # At inference the embeddings come from a prior and are inexact; training with noise makes the decoder robust
        embeds = embeds + recipe.embedding_noise * random.normal(embeds.shape[1])
        return Inputs(images, time, noise, (embeds, text, drop_embedding < recipe.embedding_dropout))

    @torch.no_grad()
    def _condition(self, batch: Batch, bpe_dropout: float = 0.0) -> tuple[Tensor, tuple[Any, ...]]:
        images = batch.unit_images(self.device)
        embeds = self._embeds(batch, images)
        text = self._text(batch.captions, bpe_dropout, batch.seeds)
        return from_unit(resize_batch(images, self.model.config.image_size)), (self.model.standardize(embeds), text)

    def _text(self, captions: list[str], dropout: float = 0.0, seeds: list[int] | None = None) -> TextStates:
        tokenizer = self.clip.tokenizer
        assert tokenizer is not None
        ids = tokenizer.encode(captions, self.clip.config.text_length, dropout=dropout, seed=seeds)
        return self.clip.text_states(to_device(self.device, ids))

    def _sample_and_compare(self, model: nn.Module, batch: Batch) -> tuple[list[Tensor], dict[str, float]]:
        """Decode the images' own embeddings; the metric is the cosine of these with the sampled images' embeddings."""
        assert isinstance(model, DiffusionDecoder)
        count, images = len(batch.captions), batch.unit_images(self.device)
        embeds = self._embeds(batch, images)
        empty = repeated(self._text([""]), count)
        options = self.recipe.sampling
        text = self._text(batch.captions)
        denoise = decoder_denoiser(model, embeds, text, empty, options.guidance, options.limit())
        sampled = self._sample(denoise, count)
        sampled_embeds = self.clip.encode_image(resize_batch(sampled, self.clip.config.image_size), normalize=False)
        # All embeddings share a large mean, which would hide differences
        cosine = F.cosine_similarity(embeds - model.image_mean, sampled_embeds - model.image_mean, dim=-1).mean().item()
        return [resize_batch(images, model.config.image_size), sampled], {"centered_cos": cosine}

    def _embeds(self, batch: Batch, images: Tensor) -> Tensor:
        """The raw embeddings [B, D] of a batch whose images [B, 3, H, H] are in [0, 1]."""
        if batch.embeds is not None:  # from shards
            return to_device(self.device, batch.embeds)
        return self.clip.encode_image(resize_batch(images, self.clip.config.image_size), normalize=False)

    def export(self, folder: Path, weights: Tensors) -> None:
        """Write a model folder with the CLIP in it."""
        assert self.recipe.clip is not None
        model_folder.save(folder, self._config(), weights, parts={"clip": resolve(self.recipe.clip)})


class UpsamplerTask(DiffusionTask):
    """Trains the upsampler, conditioned on the image in low resolution."""

    model: Upsampler

    def __init__(self, recipe: DiffusionRecipe, device: torch.device):
        assert isinstance(recipe.model, UpsamplerConfig)
        super().__init__(recipe, Upsampler(recipe.model), device)
        self.image_size = recipe.model.image_size

    @torch.no_grad()
    def inputs(self, batch: Batch) -> Inputs:
        """Random crops of images and of their blurred low-resolution versions (arXiv 2204.06125, section 2.1)."""
        random, size = PairRandom(batch.seeds, _STREAM, self.device), self.model.config.image_size
        time, top, left = random.uniform(3).unbind(1)
        images, (large,) = self._condition(batch, self.recipe.blur)
        side = round(size * self.recipe.crop)
        # Cropped as one, at the same place
        pairs = crops(torch.cat((images, large), dim=1), top, left, side)
        images, large = pairs.chunk(2, dim=1)
        return Inputs(images, time, random.normal(3, side, side), (large,))

    def _condition(self, batch: Batch, blur: float = 0.0) -> tuple[Tensor, tuple[Any, ...]]:
        images = from_unit(batch.unit_images(self.device))
        small = self._downsample(images)
        return images, (enlarged(gaussian_blur(small, blur) if blur else small, self.image_size),)

    def _downsample(self, images: Tensor) -> Tensor:
        return from_unit(resize_batch(to_unit(images), self.model.config.low_size))

    def _sample_and_compare(self, model: nn.Module, batch: Batch) -> tuple[list[Tensor], dict[str, float]]:
        """Upsample low-resolution images; PSNR of the result, and of bicubic resizing for comparison."""
        assert isinstance(model, Upsampler)
        images, (large,) = self._condition(batch)
        denoise = upsampler_denoiser(model, self._downsample(images), self.recipe.sampling.limit())
        sampled = self._sample(denoise, len(images))
        real, bicubic = to_unit(images), to_unit(large)
        metrics = {"psnr": psnr(real, sampled).mean().item(), "bicubic_psnr": psnr(real, bicubic).mean().item()}
        return [real, bicubic, sampled], metrics

    def export(self, folder: Path, weights: Tensors) -> None:
        """Write a model folder."""
        model_folder.save(folder, self._config(), weights)


def crops(images: Tensor, top: Tensor, left: Tensor, side: int) -> Tensor:
    """Crop squares out of images.

    Args:
        images: [B, C, H, H].
        top: float [B] in [0, 1), vertical position among all possible ones.
        left: float [B] in [0, 1), horizontal position.
        side: side of the squares in pixels.

    Returns:
        [B, C, side, side].
    """
    positions = images.shape[-1] - side + 1
    rows, columns = (top * positions).long().tolist(), (left * positions).long().tolist()
    return torch.stack(
        [image[:, y : y + side, x : x + side] for image, y, x in zip(images, rows, columns, strict=True)]
    )
