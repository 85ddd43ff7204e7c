"""A batch of images and captions, as data sets give it and as models take it.

Shapes: B batch, H W pixels, h w codes of an image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dalle.device import free_memory, to_device
from dalle.image_tokenizers import ImageTokenizer


class Sample(NamedTuple):
    """A pair of a batch: image, caption, seed, names of broken records skipped for it; its CLIP embedding, if known."""

    image: np.ndarray
    caption: str
    seed: int
    bad: list[str]
    embedding: np.ndarray | None = None


@dataclass
class Batch:
    """Images and captions of one step.

    Attributes:
        images: uint8 [B, 3, H, W]; from token shards, codes int64 [B, h, w]; from embedding shards, float32 [B, D].
        captions: B captions.
        seeds: random seed of each sample, derived from (run seed, epoch, index).
        bad: names of the records that were skipped for this batch, with reasons.
        embeds: CLIP embeddings of the images, float32 [B, D], from shards that hold both; None: they are not known.
    """

    images: Tensor
    captions: list[str]
    seeds: list[int]
    bad: list[str]
    embeds: Tensor | None = None

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
        if self.embeds is not None:
            return to_device(device, self.embeds)
        return to_device(device, self.images) if self.images.ndim == 2 else encode(self.unit_images(device))

    def split(self, parts: int) -> list[Batch]:
        """Split into equal micro-batches, in order; the first keeps the list of bad records."""
        size = len(self.captions) // parts  # exact: a recipe's batch size is a multiple of processes times parts
        cuts = [slice(i * size, (i + 1) * size) for i in range(parts)]
        return [replace(self.part(cut), bad=self.bad if number == 0 else []) for number, cut in enumerate(cuts)]

    def part(self, cut: slice) -> Batch:
        """Some of the samples, without the bad records."""
        embeds = None if self.embeds is None else self.embeds[cut]
        return Batch(self.images[cut], self.captions[cut], self.seeds[cut], [], embeds)


def stack(samples: list[Sample]) -> Batch:
    """Stack samples to a batch; images change from [H, W, 3] to [3, H, W]."""
    images = torch.from_numpy(np.stack([sample.image for sample in samples]))
    if images.ndim == 4:  # images [B, H, W, 3], as opposed to codes [B, h, w] or embeddings [B, D]
        images = images.permute(0, 3, 1, 2).contiguous()
    known = [sample.embedding for sample in samples if sample.embedding is not None]
    return Batch(
        images,
        [sample.caption for sample in samples],
        [sample.seed for sample in samples],
        [name for sample in samples for name in sample.bad],
        torch.from_numpy(np.stack(known)) if known else None,
    )


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
