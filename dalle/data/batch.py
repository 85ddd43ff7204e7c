"""A batch of images and captions, as data sets give it and as models take it.

Shapes: B batch, H W pixels, h w codes of an image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dalle.device import free_memory, to_device
from dalle.image_tokenizers import ImageTokenizer

Sample = tuple[np.ndarray, str, int, list[str]]
"""Image, caption, seed, names of the broken records that were skipped for it."""


@dataclass
class Batch:
    """Images and captions of one step.

    Attributes:
        images: uint8 [B, 3, H, W]; from token shards, codes int64 [B, h, w]; from embedding shards, float32 [B, D].
        captions: B captions.
        seeds: random seed of each sample, derived from (run seed, epoch, index).
        bad: names of the records that were skipped for this batch, with reasons.
    """

    images: Tensor
    captions: list[str]
    seeds: list[int]
    bad: list[str]

    def unit_images(self, device: torch.device) -> Tensor:
        """Move the images to a device as float32 [B, 3, H, W] in [0, 1]."""
        return to_device(device, self.images).float().div_(255)

    def codes(self, tokenizer: ImageTokenizer, device: torch.device) -> Tensor:
        """Image codes on a device, int64 [B, h * w]: from the batch if pre-encoded, else by encoding its images."""
        # Token shards hold codes in place of images
        encoded = self.images.ndim == 3
        codes = to_device(device, self.images) if encoded else tokenizer.encode(self.unit_images(device))
        return codes.flatten(1)

    def embeddings(self, encode: Callable[[Tensor], Tensor], device: torch.device) -> Tensor:
        """CLIP embeddings on a device, float32 [B, D]: from the batch if pre-encoded, else by encoding its images.

        Args:
            encode: maps float32 [B, 3, H, W] in [0, 1] to embeddings.
            device: where to put them.
        """
        return to_device(device, self.images) if self.images.ndim == 2 else encode(self.unit_images(device))

    def split(self, parts: int) -> list[Batch]:
        """Split into equal micro-batches, in order; the first keeps the list of bad records."""
        size = len(self.captions) // parts  # exact: a recipe's batch size is a multiple of processes times parts
        cuts = [slice(i * size, (i + 1) * size) for i in range(parts)]
        return [
            Batch(self.images[c], self.captions[c], self.seeds[c], self.bad if i == 0 else [])
            for i, c in enumerate(cuts)
        ]


def stack(samples: list[Sample]) -> Batch:
    """Stack samples to a batch; images change from [H, W, 3] to [3, H, W]."""
    images = torch.from_numpy(np.stack([image for image, _, _, _ in samples]))
    if images.ndim == 4:  # images [B, H, W, 3], as opposed to codes [B, h, w] or embeddings [B, D]
        images = images.permute(0, 3, 1, 2).contiguous()
    bad = [name for _, _, _, names in samples for name in names]
    return Batch(images, [caption for _, caption, _, _ in samples], [seed for _, _, seed, _ in samples], bad)


def check_batch_memory(images: int, size: int) -> None:
    """Check that the images of a batch fit in free memory, before minutes go into reading them.

    Args:
        images: images per batch of this process.
        size: their side in pixels.

    Raises:
        ValueError: they do not.
    """
    needed = images * 3 * size**2 * (1 + 4)  # as uint8 and as float32
    free = free_memory(torch.device("cpu"))
    if needed > free:
        raise ValueError(
            f"run.batch_size: {images:,} images of {size} x {size} take {needed / 1e9:.3g} GB before any computing, "
            f"{free / 1e9:.3g} GB are free: give less (python -m dalle find-batch finds what fits)"
        )
