"""The ResNets of OpenAI's CLIPs (RN50 to RN50x64), also as open_clip trains them: batch norms go into convolutions."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from dalle.checkpoints.lazy_tensor import LazyTensor
from dalle.checkpoints.published.state import count, derived, shape, square
from dalle.models.clip_config import ResNetConfig
from dalle.models.clip_resnet import CELL

_EPS = 1e-5  # of every batch norm there
_PARTS = {"1": "first", "2": "middle", "3": "last"}
_POOLING = {"q_proj": "pooling.q", "k_proj": "pooling.k", "v_proj": "pooling.v", "c_proj": "projection"}
NAMES = (
    (r"visual\.conv(\d)\.weight", r"vision.stem.\1.weight"),
    (r"visual\.layer(\d)\.(\d+)\.conv(\d)\.weight", r"vision.stage.\1.\2.conv\3.weight"),
    (r"visual\.layer(\d)\.(\d+)\.downsample\.0\.weight", r"vision.stage.\1.\2.shortcut.weight"),
    (r"visual\.bn(\d)\.(.+)", r"vision.stem.\1.norm.\2"),
    (r"visual\.layer(\d)\.(\d+)\.bn(\d)\.(.+)", r"vision.stage.\1.\2.conv\3.norm.\4"),
    (r"visual\.layer(\d)\.(\d+)\.downsample\.1\.(.+)", r"vision.stage.\1.\2.shortcut.norm.\3"),
    (r"visual\.attnpool\.positional_embedding", "vision.pooling.positions"),
    *((rf"visual\.attnpool\.{theirs}\.(.+)", rf"vision.{ours}.\1") for theirs, ours in _POOLING.items()),
)
DROPPED = r"visual\..*num_batches_tracked"


def is_of(names: Mapping[str, object]) -> bool:
    """Whether the image tower of a CLIP is a ResNet."""
    return "visual.layer1.0.conv1.weight" in names


def convert(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor | LazyTensor], ResNetConfig, int]:
    """Convert an image tower.

    Args:
        tensors: those of the tower by the names that `NAMES` gives.

    Returns:
        Its tensors by ours, its architecture, and the height and width of its images in pixels.

    Raises:
        ValueError: a tensor is missing.
    """
    layers = tuple(count(tensors, rf"vision\.stage\.{stage}\.(\d+)\.") for stage in range(1, 5))
    first = [sum(layers[:stage]) for stage in range(4)]  # number of each stage's first block
    state: dict[str, Tensor | LazyTensor] = {}
    for name, tensor in tensors.items():
        place = name.removesuffix(".weight")
        if f"{place}.norm.weight" not in tensors:  # no norm follows: pooling and its projection
            if ".norm." not in name:
                state[name] = tensor
            continue
        ours = place
        if stem := re.fullmatch(r"vision\.stem\.(\d)", place):
            ours = f"vision.stem.{int(stem[1]) - 1}"
        elif block := re.fullmatch(r"vision\.stage\.(\d)\.(\d+)\.(?:conv(\d)|(shortcut))", place):
            number = first[int(block[1]) - 1] + int(block[2])
            ours = f"vision.blocks.{number}.{block[4] or _PARTS[block[3]]}"
        state[f"{ours}.weight"], state[f"{ours}.bias"] = _folded(tensors, place)
    # The first position is the mean of all cells, from which pooling asks
    cells = square(shape(tensors, "vision.pooling.positions", 2)[0] - 1)[0]
    width = shape(tensors, "vision.stem.3.weight", 4)[0]
    a, b, c, d = layers
    return state, ResNetConfig(layers=(a, b, c, d), width=width), CELL * cells


def _folded(tensors: Mapping[str, Tensor], place: str) -> tuple[LazyTensor, LazyTensor]:
    """A convolution without bias and the batch norm after it, with its running statistics, as one with a bias."""
    kernel = tensors[f"{place}.weight"]
    names = ("weight", "bias", "running_mean", "running_var")
    for name in names:
        shape(tensors, f"{place}.norm.{name}", 1)
    parts = [kernel, *(tensors[f"{place}.norm.{name}"] for name in names)]
    weight, bias, mean, variance = parts[1:]

    def factor() -> Tensor:
        return weight.float() * (variance.float() + _EPS).rsqrt()  # gain / standard deviation

    def folded_kernel() -> Tensor:
        return kernel.float() * factor().view(-1, 1, 1, 1)

    def folded_bias() -> Tensor:
        return bias.float() - mean.float() * factor()

    made = derived(parts, kernel.shape, folded_kernel), derived(parts, bias.shape, folded_bias)
    # In float32 even if the file is in 16 bits, as products are not exact there
    return tuple(LazyTensor(one.shape, torch.float32, one.make) for one in made)  # type: ignore[return-value]
