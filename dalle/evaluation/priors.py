"""Metrics of unCLIP priors: how close sampled embeddings are to those of the images, and how they are distributed."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from dalle.data.batch import Batch
from dalle.device import device_of
from dalle.evaluation.metrics import frechet_distance
from dalle.generation.prior import PriorSamplingConfig, sample_embeddings
from dalle.models.autoregressive_prior import AutoregressivePrior
from dalle.models.clip import CLIP
from dalle.models.diffusion_prior import DiffusionPrior

Prior = DiffusionPrior | AutoregressivePrior

# Between the seeds of a pair's draws: more than a split has pairs. Generators of the CPU read the lower 32 bits of a
# seed only, so draws whose seeds differ above them would be the same
_NEXT_DRAW = 1 << 20


@torch.no_grad()
def prior_metrics(
    prior: Prior,
    clip: CLIP,
    batches: Iterable[Batch],
    options: PriorSamplingConfig,
    draws: int = 4,
) -> dict[str, float]:
    """Metrics over all pairs of the batches, sampled with the same seeds each time.

    A regression to the mean of all plausible embeddings has a higher cosine than a sample of a perfect prior. Therefore
    the mean of several samples is what to compare with a regression; the Fréchet distance measures the distribution.

    Args:
        prior: in eval mode.
        clip: the CLIP that the prior was trained with.
        batches: images or their embeddings, and captions.
        options: sampling options.
        draws: samples per caption.

    Returns:
        "cos" and "centered_cos": mean cosine similarity of the first sample and the image's embedding, raw and after
        subtracting the mean of the training set; "mean_cos" and "mean_centered_cos": the same for the mean of all
        samples; "frechet": Fréchet distance between first samples and image embeddings, standardized, if there are at
        least 2 pairs.
    """
    images, _, samples = sampled_embeddings(prior, clip, batches, options, draws)
    return compare_embeddings(images, samples, prior)


@torch.no_grad()
def sampled_embeddings(
    prior: Prior, clip: CLIP, batches: Iterable[Batch], options: PriorSamplingConfig, draws: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Raw embeddings of images [N, D] and captions [N, D], and what the prior samples [N, draws, D]."""
    device = device_of(prior)
    nothing = clip.text_states([""]) if prior.config.null_caption == "empty" else None
    image_embeds: list[Tensor] = []
    text_embeds: list[Tensor] = []
    samples: list[Tensor] = []  # [B, draws, D] each
    first = 0
    for batch in batches:
        image_embeds.append(batch.embeddings(partial(clip.encode_image, normalize=False), device))
        text = clip.text_states(batch.captions)
        text_embeds.append(text.embeds)
        seeds = range(first, first + len(batch.captions))
        per_draw = [
            sample_embeddings(prior, text, [seed + n * _NEXT_DRAW for seed in seeds], options, nothing=nothing)
            for n in range(draws)
        ]
        samples.append(torch.stack(per_draw, dim=1))
        first += len(seeds)
    return torch.cat(image_embeds), torch.cat(text_embeds), torch.cat(samples)


def compare_embeddings(image_embeds: Tensor, samples: Tensor, prior: Prior) -> dict[str, float]:
    """The metrics of raw sampled embeddings [N, draws, D] against the images' own [N, D]."""
    metrics = {}
    for name, predicted in (("", samples[:, 0]), ("mean_", samples.mean(1))):
        metrics[name + "cos"] = F.cosine_similarity(predicted, image_embeds, dim=-1).mean().item()
        # All embeddings of a CLIP share a large component, which makes the raw cosine high for any pair
        centered = F.cosine_similarity(predicted - prior.image_mean, image_embeds - prior.image_mean, dim=-1)
        metrics[name + "centered_cos"] = centered.mean().item()
    if len(image_embeds) > 1:
        metrics["frechet"] = frechet_distance(prior.standardize(samples[:, 0]), prior.standardize(image_embeds))
    return metrics
