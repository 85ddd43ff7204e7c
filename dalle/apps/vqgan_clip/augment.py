"""Random augmentations of cutouts: those that CLIP was trained with, and those of VQGAN-CLIP, by kornia."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dalle.files import install_command
from dalle.images.augment import augment


def augmentation(names: Sequence[str], strength: float = 1.0) -> Callable[[Tensor], Tensor]:
    """A differentiable random augmentation of images [B, 3, H, W] in [0, 1], drawn anew for each image.

    Args:
        names: of dalle.apps.vqgan_clip.options.AUGMENTS, in the order in which they are applied.
        strength: factor on all of them, above 0: at most 1 with "training", else at most 5. 1 is the strength of
            CLIP's training for "training", and about that of VQGAN-CLIP for the others.

    Raises:
        ValueError: kornia is not installed, and another augmentation than "training" is asked for.
    """
    training = [_TrainingAugmentation(strength)] if "training" in names else []
    others = [name for name in names if name != "training"]
    return nn.Sequential(*training, *(_kornia_augmentations(others, strength) if others else ()))


def _kornia_augmentations(names: Sequence[str], s: float) -> list[nn.Module]:
    """The augmentations of VQGAN-CLIP, with its probabilities; their magnitudes are scaled by `s`."""
    try:
        import kornia.augmentation as kornia
    except ImportError:
        raise ValueError(
            f"these augmentations need kornia: {install_command('paint')}, or paint with augment=training or none"
        ) from None
    erased = min(s, 2.0)  # above 2, a single rectangle could hide nearly all of the image
    makers: dict[str, Callable[[], nn.Module]] = {
        "affine": lambda: kornia.RandomAffine(
            degrees=15 * s, translate=(0.1 * s, 0.1 * s), shear=5 * s, p=0.7, padding_mode="border"
        ),
        "perspective": lambda: kornia.RandomPerspective(distortion_scale=min(0.5 * s, 1), p=0.7),
        "jitter": lambda: kornia.ColorJitter(
            brightness=0.1 * s, contrast=0.1 * s, saturation=0.1 * s, hue=min(0.1 * s, 0.5), p=0.7
        ),
        "sharpness": lambda: kornia.RandomSharpness(sharpness=0.3 * s, p=0.5),
        "noise": lambda: _GaussianNoise(0.1 * s),
        "erasing": lambda: kornia.RandomErasing(
            scale=(0.1 * erased, 0.4 * erased), ratio=(0.3, 1 / 0.3), value=1.0, p=0.5
        ),
    }
    return [makers[name]() for name in names]


class _TrainingAugmentation(nn.Module):
    """The augmentation that CLIP is trained with where its recipe sets `augment`."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength

    def forward(self, images: Tensor) -> Tensor:
        # `augment` takes a seed per image; they come from the global generator, which `Painter` seeds for each step
        return augment(images, torch.randint(2**31, (len(images),)).tolist(), self.strength)


class _GaussianNoise(nn.Module):
    """Gaussian noise whose standard deviation is uniform in [0, max_std], drawn for each image."""

    def __init__(self, max_std: float) -> None:
        super().__init__()
        self.max_std = max_std

    def forward(self, images: Tensor) -> Tensor:
        std = self.max_std * torch.rand(len(images), 1, 1, 1, device=images.device)
        return images + std * torch.randn_like(images)
