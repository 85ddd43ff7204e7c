"""What an image tokenizer keeps of images, and whether its codes are local, over batches of one split."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from dalle.checkpoints.published.efficientnet import EfficientNetLite0
from dalle.data.batch import Batch
from dalle.device import device_of
from dalle.evaluation.evaluate import Reconstructions
from dalle.evaluation.locality import blank_cells, entropy_given_place, shifted, unchanged
from dalle.evaluation.metrics import frechet_distance
from dalle.image_tokenizers import ImageTokenizer

NOISE = 2 / 255
"""Half the width of the uniform noise that codes should not change under."""


@torch.no_grad()
def tokenizer_metrics(
    tokenizer: ImageTokenizer, batches: Iterable[Batch], features: EfficientNetLite0 | None
) -> dict[str, float | None]:
    """All measures of one split (docs/evaluation.md).

    Args:
        tokenizer: in evaluation mode.
        batches: images of the size that it is made for.
        features: the network that Frechet distances are measured in; None leaves them out.

    Returns:
        Each measure by name; None where there was nothing to measure (no blank cell, one row of cells).
    """
    device = device_of(tokenizer)
    made, local = Reconstructions(tokenizer.codebook_size), Locality(tokenizer)
    of_images: list[Tensor] = []
    of_reconstructions: list[Tensor] = []
    for batch in batches:
        images = batch.unit_images(device)
        codes = tokenizer.encode(images)
        reconstructions = tokenizer.decode(codes).float()
        made.update(images, codes, reconstructions)
        local.update(images, codes, reconstructions)
        if features is not None:
            of_images.append(features(images).cpu())
            of_reconstructions.append(features(reconstructions).cpu())
    metrics: dict[str, float | None] = dict(made.metrics())
    if features is not None and sum(map(len, of_images)) > 1:
        metrics["frechet_lite0"] = frechet_distance(torch.cat(of_images), torch.cat(of_reconstructions))
    return metrics | local.metrics()


@torch.no_grad()
def white_codes(tokenizer: ImageTokenizer) -> int:
    """Distinct codes of a purely white image: 1 where a code depends on its cell alone."""
    size = tokenizer.image_size
    return len(tokenizer.encode(torch.ones(1, 3, size, size, device=device_of(tokenizer))).unique())


class Locality:
    """Counts, over batches, how many codes stay the same when images are shifted, disturbed or encoded again."""

    def __init__(self, tokenizer: ImageTokenizer):
        self.tokenizer = tokenizer
        self.device = device_of(tokenizer)
        rows, columns = tokenizer.grid
        self.blank = torch.zeros(rows * columns, tokenizer.codebook_size, dtype=torch.int64, device=self.device)
        self.cells = 0
        self.found: dict[str, list[int]] = {}  # measure -> unchanged codes, codes compared
        self.noise = torch.Generator().manual_seed(0)

    def update(self, images: Tensor, codes: Tensor, reconstructions: Tensor) -> None:
        """Add a batch.

        Args:
            images: float [B, 3, H, W] in [0, 1].
            codes: theirs, int64 [B, h, w].
            reconstructions: of the images, float [B, 3, H, W] in [0, 1].
        """
        encode, factor = self.tokenizer.encode, self.tokenizer.factor
        rows, columns = codes.shape[-2:]
        if min(rows, columns) > 1:
            self._count("kept_cell_shift", unchanged(codes, encode(shifted(images, factor, 0)), down=1))
            self._count("kept_cell_shift", unchanged(codes, encode(shifted(images, 0, factor)), right=1))
        self._count("kept_pixel_shift", unchanged(codes, encode(shifted(images, 1, 0))))
        self._count("kept_pixel_shift", unchanged(codes, encode(shifted(images, 0, 1))))
        noise = torch.rand(images.shape, generator=self.noise).mul_(2 * NOISE).sub_(NOISE).to(self.device)
        self._count("kept_noise", unchanged(codes, encode((images + noise).clamp(0, 1))))
        self._count("kept_reencoded", unchanged(codes, encode(reconstructions)))
        blank = blank_cells(images, factor).flatten(1)
        places = torch.arange(rows * columns, device=self.device).expand_as(blank)[blank]
        flat = places * self.tokenizer.codebook_size + codes.flatten(1)[blank]
        self.blank.view(-1).scatter_add_(0, flat, torch.ones_like(flat))
        self.cells += blank.numel()

    def metrics(self) -> dict[str, float | None]:
        """Shares of kept codes, the share of blank cells, and the nats of their codes given the place."""
        count = int(self.blank.sum())
        shares: dict[str, float | None] = {name: right / looked for name, (right, looked) in self.found.items()}
        shares["blank_nats"] = entropy_given_place(self.blank) if count else None
        return shares | {"blank_share": count / self.cells}

    def _count(self, name: str, same: Tensor) -> None:
        total = self.found.setdefault(name, [0, 0])
        total[0] += int(same.sum())
        total[1] += same.numel()
