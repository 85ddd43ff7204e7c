"""Metrics as pure functions of tensors. Knows nothing of models.

Shapes: B images, H W pixels, N samples, D features, K size of the codebook.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SSIM_WINDOW = 11
"""Side in pixels of the window of `ssim`, and so the smallest side of an image."""


def psnr(images: Tensor, references: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, in dB; infinite where they are equal.

    Averages over a data set are means of these, not the PSNR of the mean error.

    Args:
        images: [B, 3, H, W] in [0, 1].
        references: the same.

    Returns:
        [B]
    """
    # In float64, so that the mean over many pixels loses no digits
    error = (images.double() - references.double()).square().flatten(1).mean(1)
    return (-10 * error.log10()).to(torch.float32)


def ssim(images: Tensor, references: Tensor) -> Tensor:
    """Structural similarity of each image, in [-1, 1] (Wang et al. 2004, "Image quality assessment").

    The paper's variant: Gaussian window of 11x11 with sigma 1.5, K1 = 0.01, K2 = 0.03, data range 1, population
    moments, windows entirely inside the image only; computed per channel, then averaged.

    Args:
        images: [B, C, H, W] in [0, 1], H and W at least 11.
        references: the same.

    Returns:
        [B]
    """
    if min(images.shape[-2:]) < SSIM_WINDOW:
        size = "x".join(str(n) for n in images.shape[-2:])
        raise ValueError(f"ssim needs images of at least {SSIM_WINDOW}x{SSIM_WINDOW} pixels, got {size}")
    x, y = images.double(), references.double()  # variances are differences: float64
    offsets = torch.arange(SSIM_WINDOW, dtype=torch.float64, device=x.device) - SSIM_WINDOW // 2  # from -5 to 5
    window = torch.exp(-offsets.square() / (2 * 1.5**2))
    window = window / window.sum()

    def local_mean(values: Tensor) -> Tensor:  # [B, C, H, W] -> [B, C, H - 10, W - 10]
        # Channels as images of one channel each: the window is the same for all
        planes = values.flatten(0, 1)[:, None]
        # Two one-dimensional convolutions are the two-dimensional Gaussian window
        blurred = F.conv2d(F.conv2d(planes, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))
        return blurred.view(*values.shape[:2], *blurred.shape[-2:])

    mean_x, mean_y = local_mean(x), local_mean(y)
    variance_x = local_mean(x * x) - mean_x.square()
    variance_y = local_mean(y * y) - mean_y.square()
    covariance = local_mean(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2  # (K1 L)^2 and (K2 L)^2 with L = 1
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).flatten(1).mean(1).to(torch.float32)


class CodebookUsage:
    """Counts codes over any number of batches, without synchronizing with a GPU.

    Attributes:
        counts: int64 [K]; sum it over processes before reading the metrics.
    """

    def __init__(self, codebook_size: int, device: torch.device | str = "cpu"):
        self.counts = torch.zeros(codebook_size, dtype=torch.long, device=device)

    def update(self, codes: Tensor) -> None:
        """Count `codes`, int64 of any shape with 0 <= code < K."""
        flat = codes.flatten().to(self.counts.device)
        # Not bincount, which synchronizes: the length of its result depends on the data
        self.counts.scatter_add_(0, flat, torch.ones_like(flat))

    @property
    def used(self) -> float:
        """Fraction of the codebook that occurred at least once."""
        return (self.counts > 0).double().mean().item()

    @property
    def dead(self) -> int:
        """Number of codes that never occurred."""
        return int((self.counts == 0).sum())

    @property
    def perplexity(self) -> float:
        """exp of the entropy: K if all codes are equally frequent, 1 if there is only one; nan before any."""
        probabilities = self.counts.double() / self.counts.sum()
        return math.exp(torch.special.entr(probabilities).sum().item())

    def metrics(self) -> dict[str, float]:
        """All of the above, named for a log."""
        return {"codebook_used": self.used, "codebook_perplexity": self.perplexity, "dead_codes": float(self.dead)}


def retrieval(image_embeds: Tensor, text_embeds: Tensor, ks: Sequence[int] = (1, 10)) -> dict[str, float]:
    """Recall at k of image-to-text and text-to-image retrieval.

    Row i of the images matches row i of the texts. A match that ties with another candidate ranks behind it, so that a
    model with one similarity for all pairs scores 0 and not 1.

    Args:
        image_embeds: [N, D], L2-normalized.
        text_embeds: [N, D], L2-normalized.
        ks: each at least 1.

    Returns:
        `image_to_text@k` and `text_to_image@k` for each k, in [0, 1].
    """
    similarities = image_embeds.float() @ text_embeds.float().T  # [N images, N texts]
    recalls = {}
    for name, rows in (("image_to_text", similarities), ("text_to_image", similarities.T)):
        rank = (rows >= rows.diagonal()[:, None]).sum(1)  # 1 is best; the match counts itself
        for k in ks:
            recalls[f"{name}@{k}"] = (rank <= k).double().mean().item()
    return recalls


def accuracy(scores: Tensor, targets: Tensor, ks: Sequence[int] = (1, 5)) -> dict[str, float]:
    """Top-k accuracy; ties count against the target, as in `retrieval`.

    Args:
        scores: [N, L] of L classes.
        targets: int64 [N], correct classes.
        ks: each at least 1.

    Returns:
        `top_k` for each k, in [0, 1].
    """
    rank = (scores >= scores.gather(1, targets[:, None])).sum(1)  # 1 is best; the target counts itself
    return {f"top_{k}": (rank <= k).double().mean().item() for k in ks}


def classification(scores: Tensor, targets: Tensor) -> dict[str, float]:
    """How well scores classify.

    Args:
        scores: [N, L] of L classes.
        targets: int64 [N], the right ones.

    Returns:
        `top_1`, `top_5` (of more than 5 classes), and `mean_per_class`, the mean over the classes that occur of the
        accuracy of each; all in [0, 1].
    """
    classes = scores.shape[1]
    counts = confusion(scores.argmax(1), targets, classes)
    there = counts.sum(1) > 0
    per_class = (counts.diagonal()[there] / counts.sum(1)[there]).mean().item()
    return accuracy(scores, targets, (1, 5) if classes > 5 else (1,)) | {"mean_per_class": per_class}


def confusion(predicted: Tensor, targets: Tensor, classes: int) -> Tensor:
    """Confusion matrix: number of samples of each class (row) by predicted class (column).

    Args:
        predicted: int64 [N].
        targets: int64 [N].
        classes: L.

    Returns:
        int64 [L, L]
    """
    # Row and column as one number
    return torch.bincount(targets * classes + predicted, minlength=classes**2).view(classes, classes)


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Fréchet distance between Gaussians fitted to two sets of features (the formula of FID, arXiv 1706.08500).

    |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)). The trace of the root is computed as the sum of the square roots of
    the eigenvalues of A^(1/2) B A^(1/2), which is symmetric, so that no complex numbers arise. Distances are comparable
    only for the same feature network and number of samples: they shrink as N grows.

    Args:
        features_a: [N, D], N at least 2.
        features_b: [M, D], M at least 2.
    """
    if min(len(features_a), len(features_b)) < 2:
        raise ValueError(
            f"frechet_distance needs at least 2 samples of each set, got {len(features_a)} and {len(features_b)}"
        )
    a, b = features_a.double(), features_b.double()
    # `view`, as the covariance of a single feature is a scalar
    covariance_a, covariance_b = torch.cov(a.T).view(a.shape[1], -1), torch.cov(b.T).view(b.shape[1], -1)
    # With fewer samples than features the covariances are singular; rounding then gives small negative eigenvalues
    values, vectors = torch.linalg.eigh(covariance_a)
    root_a = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = torch.linalg.eigvalsh(root_a @ covariance_b @ root_a)
    trace = covariance_a.trace() + covariance_b.trace() - 2 * product.clamp(min=0).sqrt().sum()
    distance = (a.mean(0) - b.mean(0)).square().sum() + trace
    return float(distance.clamp(min=0))
