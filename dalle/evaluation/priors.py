"""Metrics of a prior of unCLIP: how near drawn embeddings are to those of the images, and how well they spread."""

from __future__ import annotations

from collections.abc import Iterable

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


@torch.no_grad()
def prior_metrics(
    prior: DiffusionPrior | AutoregressivePrior,
    clip: CLIP,
    batches: Iterable[Batch],
    options: PriorSamplingConfig,
    draws: int = 4,
) -> dict[str, float]:
    """Of all pairs of the batches, drawn with the same seeds each time.

    One sample of a good prior is further from the truth than the mean of what is possible, which a regression gives:
    the mean of several is what compares with a regression, and the spread is told by the Frechet distance.

    Args:
        prior: in eval mode.
        clip: what it was trained with.
        batches: images and captions.
        options: how to draw.
        draws: embeddings for each caption whose mean is compared.

    Returns:
        "cos" and "centered_cos", the mean cosine of the first draw with the image's embedding, as they are and less
        the training set's mean; "mean_cos" and "mean_centered_cos" of the mean of all draws; "frechet", the Frechet
        distance of the first draws to the images' embeddings, standardized, where there are 2 pairs or more.
    """
    device = device_of(prior)
    true: list[Tensor] = []
    drawn: list[Tensor] = []  # [B, draws, D] each
    place = 0
    for batch in batches:
        true.append(clip.encode_image(batch.unit_images(device), normalize=False))
        text = clip.text_states(batch.captions)
        seeds = [place + row for row in range(len(batch.captions))]
        each = [sample_embeddings(prior, text, [seed + (n << 32) for seed in seeds], options) for n in range(draws)]
        drawn.append(torch.stack(each, dim=1))
        place += len(seeds)
    return compared(torch.cat(true), torch.cat(drawn), prior)


def compared(true: Tensor, drawn: Tensor, prior: DiffusionPrior | AutoregressivePrior) -> dict[str, float]:
    """The metrics of drawn raw embeddings [N, draws, D] beside the true ones [N, D]."""
    metrics = {}
    for name, guess in (("", drawn[:, 0]), ("mean_", drawn.mean(1))):
        metrics[name + "cos"] = F.cosine_similarity(guess, true, dim=-1).mean().item()
        centered = F.cosine_similarity(guess - prior.image_mean, true - prior.image_mean, dim=-1)
        metrics[name + "centered_cos"] = centered.mean().item()
    if len(true) > 1:
        metrics["frechet"] = frechet_distance(prior.standardize(drawn[:, 0]), prior.standardize(true))
    return metrics
