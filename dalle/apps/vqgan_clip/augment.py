"""Random changes of cutouts: those of CLIP's training, and by kornia those that VQGAN-CLIP's users rely on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dalle.images.augment import augment


def augmentation(names: Sequence[str], strength: float = 1.0) -> Callable[[Tensor], Tensor]:
    """A random change of images [B, 3, H, W] in [0, 1], other for each image, with gradients.

    Args:
        names: of dalle.apps.vqgan_clip.options.AUGMENTS, in the order in which they are applied.
        strength: of all of them, above 0 and at most 5, with "training" 1; 1 is that of training, or about that of
            VQGAN-CLIP.

    Raises:
        ValueError: kornia is not installed, and something else than "training" is asked for.
    """
    first = [_Training(strength)] if "training" in names else []
    others = [name for name in names if name != "training"]
    return nn.Sequential(*first, *(_by_kornia(others, strength) if others else ()))


def _by_kornia(names: Sequence[str], s: float) -> list[nn.Module]:
    try:
        import kornia.augmentation as kornia
    except ImportError:
        raise ValueError(
            'these augmentations need kornia: pip install "dalle[paint]", or paint with augment=training or none'
        ) from None
    share = min(s, 2.0)  # twice as large, an erased part may be nearly all of the image
    makers: dict[str, Callable[[], nn.Module]] = {
        "affine": lambda: kornia.RandomAffine(
            degrees=15 * s, translate=(0.1 * s, 0.1 * s), shear=5 * s, p=0.7, padding_mode="border"
        ),
        "perspective": lambda: kornia.RandomPerspective(distortion_scale=min(0.5 * s, 1), p=0.7),
        "jitter": lambda: kornia.ColorJitter(
            brightness=0.1 * s, contrast=0.1 * s, saturation=0.1 * s, hue=min(0.1 * s, 0.5), p=0.7
        ),
        "sharpness": lambda: kornia.RandomSharpness(sharpness=0.3 * s, p=0.5),
        "noise": lambda: _Noise(0.1 * s),
        "erasing": lambda: kornia.RandomErasing(
            scale=(0.1 * share, 0.4 * share), ratio=(0.3, 1 / 0.3), value=1.0, p=0.5
        ),
    }
    return [makers[name]() for name in names]


class _Training(nn.Module):
    """What images go through when CLIP is trained with `augment`."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength

    def forward(self, images: Tensor) -> Tensor:
        return augment(images, torch.randint(2**31, (len(images),)).tolist(), self.strength)


class _Noise(nn.Module):
    """Gaussian noise whose strength is drawn anew for each image, up to `most`."""

    def __init__(self, most: float) -> None:
        super().__init__()
        self.most = most

    def forward(self, images: Tensor) -> Tensor:
        strength = self.most * torch.rand(len(images), 1, 1, 1, device=images.device)
        return images + strength * torch.randn_like(images)
