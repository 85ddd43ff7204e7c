"""Cutouts of an image, each as large as CLIP's input: of several kinds, changed at random."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


class Cutouts:
    """Cuts `count` squares of `side` pixels, the kinds taking turns, and changes them at random.

    Random numbers come from the global generator of the CPU and of the image's device, as kornia's do.
    """

    def __init__(
        self,
        side: int,
        count: int,
        kinds: Sequence[str] = ("random",),
        smallest: float = 0.7,
        power: float = 1.0,
        augments: Sequence[str] = (),
        strength: float = 1.0,
    ) -> None:
        self.side, self.kinds = side, [kinds[index % len(kinds)] for index in range(count)]
        self.smallest, self.power = smallest, power
        self.augment: Callable[[Tensor], Tensor] | None = None
        if augments:
            from dalle.apps.vqgan_clip.augment import augmentation  # kornia takes seconds to import

            self.augment = augmentation(augments, strength)

    def __call__(self, image: Tensor) -> Tensor:
        """An image [1, 3, H, W] in [0, 1] to [count, 3, side, side], with gradients. Noise may leave [0, 1]."""
        whole = {kind: self._whole(image, kind) for kind in set(self.kinds) - {"random"}}
        cut = torch.cat([self._random(image) if kind == "random" else whole[kind] for kind in self.kinds])
        return cut if self.augment is None else self.augment(cut)

    def _whole(self, image: Tensor, kind: str) -> Tensor:
        """All of the image, squeezed to a square."""
        if kind == "whole":
            return resized(image, self.side)
        means, maxima = F.adaptive_avg_pool2d(image, self.side), F.adaptive_max_pool2d(image, self.side)
        return (means + maxima) / 2

    def _random(self, image: Tensor) -> Tensor:
        """A square of random size and place."""
        height, width = image.shape[2:]
        longest = min(height, width)
        share = self.smallest + (1 - self.smallest) * float(torch.rand(())) ** self.power
        side = max(1, min(longest, round(share * longest)))
        top = int(torch.randint(height - side + 1, ()))
        left = int(torch.randint(width - side + 1, ()))
        return resized(image[:, :, top : top + side, left : left + side], self.side)


def resized(images: Tensor, side: int) -> Tensor:
    """[B, 3, H, W] to [B, 3, side, side]: bilinear, by means where it shrinks."""
    if images.shape[2:] == (side, side):
        return images
    smaller = max(images.shape[2:]) > side
    return F.interpolate(images, (side, side), mode="bilinear", antialias=smaller, align_corners=False)
