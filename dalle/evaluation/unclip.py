"""Metrics of the parts of an unCLIP that `python -m dalle eval` prints: prior, decoder, upsampler, or all together.

The tables of arXiv 2204.06125, section 5, at the size of a test split. Shapes: N pairs, B of a batch, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dalle.checkpoints.load import load_clip
from dalle.checkpoints.load_unclip import load_diffusion, load_prior
from dalle.checkpoints.model_folder import ModelFolder
from dalle.checkpoints.source import is_model_folder
from dalle.checkpoints.unclip import load_unclip
from dalle.config import from_dict
from dalle.data.batch import Batch
from dalle.device import device_of
from dalle.evaluation.metrics import frechet_distance, psnr
from dalle.evaluation.prior_baselines import ranked
from dalle.evaluation.priors import Prior, compare_embeddings, sampled_embeddings
from dalle.generation.diffusion.sample import candidate_noise, sample
from dalle.generation.diffusion_decoder import (
    DiffusionSamplingConfig,
    decoder_denoiser,
    from_unit,
    image_shape,
    repeated,
    to_unit,
    upsampler_denoiser,
)
from dalle.generation.prior import PriorSamplingConfig, sample_embeddings
from dalle.images.transforms import resize_batch
from dalle.models.clip import CLIP
from dalle.models.diffusion_decoder import DiffusionDecoder
from dalle.models.noise_schedule import make_schedule
from dalle.models.upsampler import Upsampler, enlarged

Metrics = dict[str, float | None]
DRAWS = 16  # samples per caption whose mean is compared with a regression


def metrics_function(
    path: Path, judge: CLIP | None, device: torch.device
) -> tuple[int, Callable[[Iterator[Batch]], Metrics]]:
    """The size in pixels of the images that a model is evaluated on, and the function that computes its metrics.

    Args:
        path: folder of a prior, decoder, upsampler or unCLIP, or of a published unCLIP.
        judge: the CLIP that judges sampled images; None: the model's own.
        device: where to compute.

    Raises:
        ValueError: it is an unCLIP that cannot be evaluated.
    """
    stage = ModelFolder(path).config.get("stage") if is_model_folder(path) else "unclip"
    if stage == "unclip":
        parts = load_unclip(path, device=device)
        if not isinstance(parts.decoder, DiffusionDecoder) or parts.prior is None:
            raise ValueError(f"{path} has no prior, or decodes to latents: eval takes neither")
        whole = DecoderEvaluation(parts.decoder, parts.clip, judge, parts.decoder_sampling)
        whole.prior, whole.prior_sampling = parts.prior, parts.prior_sampling
        return whole.image_size, whole.metrics
    folder = ModelFolder(path)
    sampling = folder.config.get("sampling") or {}
    if stage == "prior":
        clip = load_clip(folder.component("clip"), device)
        options = from_dict(PriorSamplingConfig, sampling, folder.origin)
        return clip.config.image_size, partial(_prior_metrics, load_prior(path, device), clip, options)
    model, settings = load_diffusion(path, device), from_dict(DiffusionSamplingConfig, sampling, folder.origin)
    if isinstance(model, Upsampler):
        return model.config.image_size, partial(upsampler_metrics, model, options=settings)
    if not isinstance(model, DiffusionDecoder):
        raise ValueError(f"{path} decodes to latents, which eval does not: evaluate its prior")
    decoder = DecoderEvaluation(model, load_clip(folder.component("clip"), device), judge, settings)
    return decoder.image_size, decoder.metrics


def _prior_metrics(prior: Prior, clip: CLIP, options: PriorSamplingConfig, batches: Iterable[Batch]) -> Metrics:
    return dict(full_prior_metrics(prior, *sampled_embeddings(prior, clip, batches, options, DRAWS)))


def full_prior_metrics(prior: Prior, images: Tensor, texts: Tensor, samples: Tensor) -> dict[str, float]:
    """Metrics of a prior's samples, ranks among all pairs, and what the caption's own embedding would reach.

    Args:
        prior: has the means of the training set.
        images: true embeddings [N, D], raw.
        texts: embeddings of the captions [N, D], raw.
        samples: sampled embeddings [N, draws, D], raw.

    Returns:
        Those of `compare_embeddings`; "own_image_top1" and "_top10": how often the true image is among the 1 or 10
        closest ones to a sample, by centered cosine; "own_caption_top1" and "_top10": the caption, by cosine;
        "caption_cos" and "caption_centered_cos": the caption's embedding in place of a sample; "constant_cos": the mean
        of the training set in place of a sample.
    """
    found = compare_embeddings(images, samples, prior)
    first = samples[:, 0]
    found |= ranked("own_image", first - prior.image_mean, images - prior.image_mean)
    found |= ranked("own_caption", first, texts)
    found["caption_cos"] = F.cosine_similarity(texts, images, dim=-1).mean().item()
    centered = F.cosine_similarity(texts - prior.text_mean, images - prior.image_mean, dim=-1)
    found["caption_centered_cos"] = centered.mean().item()
    found["constant_cos"] = F.cosine_similarity(prior.image_mean[None], images, dim=-1).mean().item()
    return found


class DecoderEvaluation:
    """Decodes embeddings from several sources and judges the images by a CLIP.

    Attributes:
        image_size: height and width of the images to evaluate on, in pixels.
        prior: also decode its samples, if it is set.
        prior_sampling: options of these.
    """

    def __init__(self, decoder: DiffusionDecoder, clip: CLIP, judge: CLIP | None, options: DiffusionSamplingConfig):
        self.decoder, self.clip, self.judge, self.options = decoder, clip, clip if judge is None else judge, options
        # Decoder and both CLIPs shrink the images, none enlarges them
        self.image_size = max(clip.config.image_size, self.judge.config.image_size, decoder.config.image_size)
        self.prior: Prior | None = None
        self.prior_sampling = PriorSamplingConfig()

    @torch.no_grad()
    def metrics(self, batches: Iterable[Batch]) -> Metrics:
        """Metrics over all pairs, sampled with the same seeds each time.

        Returns:
            For each source of embeddings, "image" (the true ones, an upper bound), "prior" if there is one, and
            "caption" (the text embedding in place of an image's, as in section 5 of the paper): SOURCE_cos, the cosine
            of embeddings of true and decoded image, both less the training mean; SOURCE_caption_top1 and _top10: how
            often the judge ranks the own caption among the first 1 or 10 of all; SOURCE_frechet: Fréchet distance of
            true and decoded images in the judge's embeddings, if there are at least 2 pairs.
        """
        true: list[Tensor] = []
        judged: list[Tensor] = []
        captions: list[Tensor] = []
        found: dict[str, list[tuple[Tensor, Tensor]]] = {}
        seed = 0
        for batch in batches:
            images = batch.unit_images(device_of(self.decoder))
            true.append(self._embeds(self.clip, images))
            judged.append(self._embeds(self.judge, images))
            captions.append(self.judge.encode_text(batch.captions))
            seeds = list(range(seed, seed + len(batch.captions)))
            for source, z in self._sources(batch, true[-1], seeds).items():
                decoded = self._decode(z, batch.captions, seeds)
                embeds = self._embeds(self.clip, decoded), self._embeds(self.judge, decoded)
                found.setdefault(source, []).append(embeds)
            seed += len(seeds)
        result: Metrics = {}
        for source, parts in found.items():
            own, by_judge = (torch.cat(embeds) for embeds in zip(*parts, strict=True))
            mean = self.decoder.image_mean
            cosines = F.cosine_similarity(own - mean, torch.cat(true) - mean, dim=-1)
            result[f"{source}_cos"] = cosines.mean().item()
            result |= ranked(f"{source}_caption", by_judge, torch.cat(captions))
            if len(by_judge) > 1:
                result[f"{source}_frechet"] = frechet_distance(by_judge, torch.cat(judged))
        return result

    def _sources(self, batch: Batch, true: Tensor, seeds: list[int]) -> dict[str, Tensor]:
        """Embeddings [B, D] to decode, by where they come from."""
        text = self.clip.text_states(batch.captions)
        sources = {"image": true}
        if self.prior is not None:
            nothing = self.clip.text_states([""]) if self.prior.config.null_caption == "empty" else None
            sources["prior"] = sample_embeddings(self.prior, text, seeds, self.prior_sampling, nothing=nothing)
        # Direction of the text, length of the image: lengths before normalization differ between the towers
        return sources | {"caption": F.normalize(text.embeds, dim=-1) * true.norm(dim=-1, keepdim=True)}

    def _decode(self, z: Tensor, captions: list[str], seeds: list[int]) -> Tensor:
        options, text = self.options, self.clip.text_states(captions)
        empty = repeated(self.clip.text_states([""]), len(z))
        denoise = decoder_denoiser(self.decoder, z, text, empty, options.guidance, options.limit())
        noise = candidate_noise(seeds, image_shape(self.decoder), z.device)
        return to_unit(sample(denoise, make_schedule(self.decoder.config.schedule), options.sampler, noise))

    def _embeds(self, clip: CLIP, images: Tensor) -> Tensor:
        return clip.encode_image(resize_batch(images, clip.config.image_size), normalize=False)


@torch.no_grad()
def upsampler_metrics(model: Upsampler, batches: Iterable[Batch], options: DiffusionSamplingConfig) -> Metrics:
    """PSNR of upsampled images, and of bicubic resizing, in dB: means over all images."""
    own: list[Tensor] = []
    bicubic: list[Tensor] = []
    schedule, seed = make_schedule(model.config.schedule), 0
    for batch in batches:
        images = batch.unit_images(device_of(model))
        small = from_unit(resize_batch(images, model.config.low_size))
        noise = candidate_noise(range(seed, seed + len(images)), image_shape(model), images.device)
        upsampled = sample(upsampler_denoiser(model, small, options.limit()), schedule, options.sampler, noise)
        own.append(psnr(images, to_unit(upsampled)))
        bicubic.append(psnr(images, to_unit(enlarged(small, model.config.image_size))))
        seed += len(images)
    return {"psnr": torch.cat(own).mean().item(), "bicubic_psnr": torch.cat(bicubic).mean().item()}
