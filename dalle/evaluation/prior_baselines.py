"""A prior at several guidance scales, beside predictions of image embeddings that need no prior.

Shapes: M training pairs, N pairs of the split, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from dalle.data.batch import Batch
from dalle.device import device_of
from dalle.evaluation.metrics import frechet_distance
from dalle.evaluation.priors import Prior, sampled_embeddings
from dalle.generation.prior import PriorSamplingConfig
from dalle.models.clip import CLIP

Rows = dict[str, dict[str, float | None]]
"""Title of a row -> metric -> value; None where it is undefined."""
GUIDANCE = (1.0, 1.5, 2.0, 4.0)
"""Guidance scales of the table: the paper found that guiding the prior hurts (arXiv 2204.06125, section 5.5)."""
_STRENGTHS = tuple(10.0**exponent for exponent in range(-5, 3))
_TOP = (1, 10)


@torch.no_grad()
def pair_embeddings(clip: CLIP, batches: Iterator[Batch]) -> tuple[Tensor, Tensor]:
    """Raw embeddings of the images and captions of all batches, [M, D] each."""
    device = device_of(clip)
    images, texts = [], []
    for batch in batches:
        images.append(batch.embeddings(partial(clip.encode_image, normalize=False), device))
        texts.append(clip.encode_text(batch.captions, normalize=False))
    return torch.cat(images), torch.cat(texts)


def prior_table(
    prior: Prior,
    clip: CLIP,
    training: tuple[Tensor, Tensor],
    batches: Sequence[Batch],
    options: PriorSamplingConfig,
    draws: int = 16,
    progress: Callable[[int], object] | None = None,
) -> Rows:
    """Metrics of samples at several guidance scales, beside those of predictions that need no prior.

    Args:
        prior: in eval mode.
        clip: the CLIP that the prior was trained with.
        training: raw embeddings of training images and their captions, [M, D] each, for the baselines.
        batches: N pairs.
        options: sampling options, but for the guidance.
        draws: samples per caption, of which the mean is evaluated besides the first.
        progress: called with the number of pairs done after each guidance scale.

    Returns:
        For each prediction "cos" and "centered_cos", its mean cosine similarity with the image's embedding, raw and
        after subtracting the mean of the prior's training set; "frechet", the Fréchet distance of predictions and image
        embeddings, standardized; "own_image_top1" and "_top10", how often the own image is the nearest or among the
        nearest ten of the N, by centered cosine; "own_caption_top1" and "_top10", the same of captions, by cosine. Ties
        count as errors. Means of several samples, and regressions, have a high cosine but too small a variance: only
        the Fréchet distance tells that.
    """
    rows: Rows = {}
    # Once, and not for each guidance scale
    encode, device = partial(clip.encode_image, normalize=False), device_of(clip)
    batches = [replace(batch, embeds=batch.embeddings(encode, device)) for batch in batches]
    for scale in GUIDANCE:
        found = sampled_embeddings(prior, clip, batches, replace(options, guidance=scale), draws)
        images, texts, samples = found
        if not rows:
            rows |= _baselines(prior, training, images, texts)
        title = f"prior, guidance {scale:g}"
        rows[f"{title}, one sample"] = embedding_metrics(samples[:, 0], images, texts, prior)
        if draws > 1:
            rows[f"{title}, mean of {draws}"] = embedding_metrics(samples.mean(1), images, texts, prior)
        if progress is not None:
            progress(len(images))
    return rows


def _baselines(prior: Prior, training: tuple[Tensor, Tensor], images: Tensor, texts: Tensor) -> Rows:
    known_images, known_texts = training
    nearest = known_images[_unit(texts).matmul(_unit(known_texts).T).argmax(1)]
    constant = prior.image_mean.expand_as(images)
    measured = partial(embedding_metrics, images=images, texts=texts, prior=prior)
    mean = dict.fromkeys(measured(constant)) | {
        "cos": F.cosine_similarity(constant, images, dim=-1).mean().item(),
        "centered_cos": 0.0,
    }
    return {
        "the image's own embedding": measured(images),
        "image of the nearest training caption": measured(nearest),
        "the caption's own embedding": measured(texts, mean=prior.text_mean),
        "ridge regression": measured(ridge_regression(known_texts, known_images)(texts)),
        "mean of the training set": mean,
    }


def embedding_metrics(
    predicted: Tensor, images: Tensor, texts: Tensor, prior: Prior, mean: Tensor | None = None
) -> dict[str, float | None]:
    """Metrics of one prediction [N, D] per pair, as in `prior_table`; `mean` [D] centers it, None: the prior's mean."""
    center = prior.image_mean if mean is None else mean
    centered, targets = predicted - center, images - prior.image_mean
    found: dict[str, float | None] = {
        "cos": F.cosine_similarity(predicted, images, dim=-1).mean().item(),
        "centered_cos": F.cosine_similarity(centered, targets, dim=-1).mean().item(),
        "frechet": None,
    }
    if len(images) > 1:
        found["frechet"] = frechet_distance(prior.standardize(predicted), prior.standardize(images))
    return {**found, **ranked("own_image", centered, targets), **ranked("own_caption", predicted, texts)}


def ranked(name: str, queries: Tensor, keys: Tensor) -> Mapping[str, float]:
    """How often key n is among the nearest ones of query n, by cosine; [N, D] each. Ties count as errors."""
    similarity = _unit(queries) @ _unit(keys).T
    ranks = (similarity >= similarity.diagonal()[:, None]).sum(1)  # 1 is best; the key counts itself
    return {f"{name}_top{most}": (ranks <= most).float().mean().item() for most in _TOP}


def ridge_regression(inputs: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
    """Fit targets linearly to standardized inputs, [M, D] each, with an L2 penalty chosen on every tenth pair.

    Returns:
        A function from inputs [N, D] to predictions [N, D].

    Raises:
        ValueError: fewer than 10 pairs.
    """
    if len(inputs) < 10:
        raise ValueError(f"a regression needs at least 10 training pairs, got {len(inputs)}")
    center, scale = inputs.mean(0), inputs.std(0).clamp(min=1e-6)
    x, y = ((inputs - center) / scale).double(), targets.double()
    apart = torch.arange(len(x), device=x.device) % 10 == 0

    def fitted(rows: Tensor, strength: float) -> tuple[Tensor, Tensor]:
        offset = y[rows].mean(0)
        penalty = strength * int(rows.sum()) * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        return torch.linalg.solve(x[rows].T @ x[rows] + penalty, x[rows].T @ (y[rows] - offset)), offset

    def error(strength: float) -> float:
        weight, offset = fitted(~apart, strength)
        return float((x[apart] @ weight + offset - y[apart]).square().mean())

    weight, offset = fitted(torch.ones_like(apart), min(_STRENGTHS, key=error))
    return lambda new: (((new - center) / scale).double() @ weight + offset).to(targets.dtype)


def _unit(embeds: Tensor) -> Tensor:
    return F.normalize(embeds, dim=-1)
