"""Metrics of an image tokenizer over batches of a split: reconstruction, codebook usage, locality of codes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from dalle.checkpoints.published.efficientnet import EfficientNetLite0
from dalle.data.batch import Batch
from dalle.device import device_of
from dalle.evaluation.evaluate import ReconstructionMetrics
from dalle.evaluation.locality import blank_cells, entropy_given_position, shift, unchanged_codes
from dalle.evaluation.metrics import frechet_distance
from dalle.image_tokenizers import ImageTokenizer

NOISE = 2 / 255
"""Amplitude of the uniform noise that should not change codes."""


@torch.no_grad()
def tokenizer_metrics(
    tokenizer: ImageTokenizer, batches: Iterable[Batch], features: EfficientNetLite0 | None
) -> dict[str, float | None]:
    """All metrics of one split (docs/evaluation.md).

    Args:
        tokenizer: in eval mode.
        batches: images of the tokenizer's size.
        features: the network of Fréchet distances; None leaves them out.

    Returns:
        Metrics by name; None where one is undefined (no blank cell).
    """
    device = device_of(tokenizer)
    reconstruction, locality = ReconstructionMetrics(tokenizer.codebook_size), LocalityMetrics(tokenizer)
    image_features: list[Tensor] = []
    reconstruction_features: list[Tensor] = []
    for batch in batches:
        images = batch.unit_images(device)
        codes = tokenizer.encode(images)
        reconstructions = tokenizer.decode(codes).float()
        reconstruction.update(images, codes, reconstructions)
        locality.update(images, codes, reconstructions)
        if features is not None:
            image_features.append(features(images).cpu())
            reconstruction_features.append(features(reconstructions).cpu())
    metrics: dict[str, float | None] = dict(reconstruction.metrics())
    if features is not None and sum(map(len, image_features)) > 1:
        metrics["frechet_lite0"] = frechet_distance(torch.cat(image_features), torch.cat(reconstruction_features))
    return metrics | locality.metrics()


@torch.no_grad()
def white_codes(tokenizer: ImageTokenizer) -> int:
    """Number of distinct codes of a purely white image: 1 if codes depend on their own cell only."""
    size = tokenizer.image_size
    return len(tokenizer.encode(torch.ones(1, 3, size, size, device=device_of(tokenizer))).unique())


class LocalityMetrics:
    """Fractions of codes that do not change if images are shifted, made noisy, or reconstructed; over batches."""

    def __init__(self, tokenizer: ImageTokenizer):
        self.tokenizer = tokenizer
        self.device = device_of(tokenizer)
        rows, columns = tokenizer.grid
        self.blank_counts = torch.zeros(rows * columns, tokenizer.codebook_size, dtype=torch.int64, device=self.device)
        self.cells = 0
        self.counts: dict[str, list[int]] = {}  # metric -> unchanged codes, compared codes
        self.noise = torch.Generator().manual_seed(0)  # the same noise each time

    def update(self, images: Tensor, codes: Tensor, reconstructions: Tensor) -> None:
        """Add a batch.

        Args:
            images: float [B, 3, H, W] in [0, 1].
            codes: int64 [B, h, w], of the images.
            reconstructions: float [B, 3, H, W] in [0, 1], of the images.
        """
        encode, factor = self.tokenizer.encode, self.tokenizer.factor
        rows, columns = codes.shape[-2:]
        if min(rows, columns) > 1:
            self._count("kept_cell_shift", unchanged_codes(codes, encode(shift(images, factor, 0)), down=1))
            self._count("kept_cell_shift", unchanged_codes(codes, encode(shift(images, 0, factor)), right=1))
        self._count("kept_pixel_shift", unchanged_codes(codes, encode(shift(images, 1, 0))))
        self._count("kept_pixel_shift", unchanged_codes(codes, encode(shift(images, 0, 1))))
        # Drawn on the CPU, so that the noise is the same on every device
        noise = torch.rand(images.shape, generator=self.noise).mul_(2 * NOISE).sub_(NOISE).to(self.device)
        self._count("kept_noise", unchanged_codes(codes, encode((images + noise).clamp(0, 1))))
        self._count("kept_reencoded", unchanged_codes(codes, encode(reconstructions)))
        blank = blank_cells(images, factor).flatten(1)  # [B, P]
        positions = torch.arange(rows * columns, device=self.device).expand_as(blank)[blank]
        # Count pairs of position and code as indices of the flattened table [P, K]
        flat = positions * self.tokenizer.codebook_size + codes.flatten(1)[blank]
        self.blank_counts.view(-1).scatter_add_(0, flat, torch.ones_like(flat))
        self.cells += blank.numel()

    def metrics(self) -> dict[str, float | None]:
        """Fractions of unchanged codes, the fraction of blank cells, and the entropy of their codes."""
        count = int(self.blank_counts.sum())
        metrics: dict[str, float | None] = {name: same / total for name, (same, total) in self.counts.items()}
        metrics["blank_nats"] = entropy_given_position(self.blank_counts) if count else None
        return metrics | {"blank_share": count / self.cells}

    def _count(self, name: str, same: Tensor) -> None:
        counts = self.counts.setdefault(name, [0, 0])
        counts[0] += int(same.sum())
        counts[1] += same.numel()
