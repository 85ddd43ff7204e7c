"""Cutouts: random crops of an image, resized to CLIP's input and augmented (arXiv 2204.08583, section 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


class Cutouts:
    """Makes `count` cutouts of `side` x `side` pixels, their kinds in turns, and augments them.

    Random numbers come from the global generators of the CPU and of the image's device, as kornia's do; `Painter`
    seeds these for each step.

    Args:
        side: height and width of a cutout in pixels.
        count: number of cutouts.
        kinds: of each cutout in turn: "random" crops, or all of the image by "pool" or "whole" (see `_whole_image`).
        min_size: side of the smallest random crop, as a fraction of the image's shorter side.
        power: above 1, smaller crops are more frequent.
        augments: names for `augmentation`.
        strength: of the augmentations.
    """

    def __init__(
        self,
        side: int,
        count: int,
        kinds: Sequence[str] = ("random",),
        min_size: float = 0.7,
        power: float = 1.0,
        augments: Sequence[str] = (),
        strength: float = 1.0,
    ) -> None:
        self.side, self.kinds = side, [kinds[index % len(kinds)] for index in range(count)]
        self.min_size, self.power = min_size, power
        self.augment: Callable[[Tensor], Tensor] | None = None
        if augments:
            from dalle.apps.vqgan_clip.augment import augmentation  # kornia takes seconds to import

            self.augment = augmentation(augments, strength)

    def __call__(self, image: Tensor) -> Tensor:
        """An image [1, 3, H, W] in [0, 1] to [count, 3, side, side], with gradients; noise may leave [0, 1]."""
        whole = {kind: self._whole_image(image, kind) for kind in set(self.kinds) - {"random"}}
        # The kinds in turn: [count, 3, side, side]
        cutouts = torch.cat([self._random_crop(image) if kind == "random" else whole[kind] for kind in self.kinds])
        return cutouts if self.augment is None else self.augment(cutouts)

    def _whole_image(self, image: Tensor, kind: str) -> Tensor:
        """All of the image resized to a square: "whole" by means, "pool" by the mean of average and max pooling."""
        if kind == "whole":
            return resize_square(image, self.side)
        return (F.adaptive_avg_pool2d(image, self.side) + F.adaptive_max_pool2d(image, self.side)) / 2

    def _random_crop(self, image: Tensor) -> Tensor:
        """A square of random size and position."""
        height, width = image.shape[2:]
        longest = min(height, width)
        fraction = self.min_size + (1 - self.min_size) * float(torch.rand(())) ** self.power
        side = max(1, min(longest, round(fraction * longest)))
        top = int(torch.randint(height - side + 1, ()))
        left = int(torch.randint(width - side + 1, ()))
        return resize_square(image[:, :, top : top + side, left : left + side], self.side)


def resize_square(images: Tensor, side: int) -> Tensor:
    """[B, 3, H, W] to [B, 3, side, side]: bilinear, antialiased where it shrinks."""
    if images.shape[2:] == (side, side):
        return images
    shrinks = max(images.shape[2:]) > side
    return F.interpolate(images, (side, side), mode="bilinear", antialias=shrinks, align_corners=False)
