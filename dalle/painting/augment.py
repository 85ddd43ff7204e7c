"""Random changes of cutouts, by kornia: those that VQGAN-CLIP's users rely on, in its strengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def augmentation(names: Sequence[str]) -> Callable[[Tensor], Tensor]:
    """A random change of images [B, 3, H, W] in [0, 1], other for each image, with gradients.

    Args:
        names: of dalle.painting.options.AUGMENTS, in the order in which they are applied.

    Raises:
        ValueError: kornia is not installed.
    """
    try:
        import kornia.augmentation as kornia
    except ImportError:
        raise ValueError(
            'augmentations of cutouts need kornia: pip install "dalle[paint]", or paint without them (augment=none)'
        ) from None
    makers: dict[str, Callable[[], nn.Module]] = {
        "affine": lambda: kornia.RandomAffine(degrees=15, translate=(0.1, 0.1), shear=5, p=0.7, padding_mode="border"),
        "perspective": lambda: kornia.RandomPerspective(distortion_scale=0.4, p=0.7),
        "jitter": lambda: kornia.ColorJitter(brightness=0.1, contrast=0.1, saturation=0.1, hue=0.05, p=0.7),
        "sharpness": lambda: kornia.RandomSharpness(sharpness=0.3, p=0.5),
        "noise": lambda: _Noise(0.1),
        "erasing": lambda: kornia.RandomErasing(scale=(0.1, 0.3), ratio=(0.3, 1 / 0.3), value=1.0, p=0.5),
    }
    return nn.Sequential(*(makers[name]() for name in names))


class _Noise(nn.Module):
    """Gaussian noise whose strength is drawn anew for each image, up to `most`."""

    def __init__(self, most: float) -> None:
        super().__init__()
        self.most = most

    def forward(self, images: Tensor) -> Tensor:
        strength = self.most * torch.rand(len(images), 1, 1, 1, device=images.device)
        return images + strength * torch.randn_like(images)
