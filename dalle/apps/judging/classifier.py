"""The judge's network: a small residual CNN that classifies concept and style of a drawing. Knows no captions.

Shapes: B images, C concepts, S styles.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.checkpoints import model_folder
from dalle.checkpoints.folder_config import WEIGHTS
from dalle.checkpoints.hub import resolve
from dalle.checkpoints.modules import load_weights
from dalle.checkpoints.tensors import open_tensors
from dalle.config import config, from_dict
from dalle.images.transforms import resize_batch

IMAGE_SIZE = 64
"""Height and width of its input in pixels."""
STAGE = "judge"
_WIDTHS = (32, 64, 128, 256)
_BATCH = 128


@config
class ClassifierConfig:
    """The names that a judge tells apart."""

    concepts: list[str]
    styles: list[str]


class Classifier(nn.Module):
    """A ResNet (He et al. 2015, arXiv 1512.03385) of one block of two 3x3 convolutions at each of four resolutions.

    Attributes:
        concepts: names of the C concepts.
        styles: names of the S styles.
    """

    def __init__(self, concepts: Sequence[str], styles: Sequence[str]) -> None:
        super().__init__()
        self.concepts, self.styles = list(concepts), list(styles)
        self.stem = nn.Sequential(
            nn.Conv2d(3, _WIDTHS[0], 4, stride=2, padding=1, bias=False), nn.BatchNorm2d(_WIDTHS[0]), nn.ReLU()
        )
        self.blocks = nn.Sequential(*(_Block(in_width, width) for in_width, width in pairwise((_WIDTHS[0], *_WIDTHS))))
        self.concept_head = nn.Linear(_WIDTHS[-1], len(concepts))
        self.style_head = nn.Linear(_WIDTHS[-1], len(styles))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, 3, 64, 64] in [0, 1] -> logits of concepts [B, C] and of styles [B, S]."""
        x = self.blocks(self.stem(2 * images - 1)).mean((2, 3))  # [B, 256]
        return self.concept_head(x), self.style_head(x)

    @torch.inference_mode()
    def log_probs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [N, 3, H, W] in [0, 1] of any size -> log probabilities [N, C] and [N, S], on the CPU."""
        device = self.concept_head.weight.device
        parts = [self(resize_batch(part.to(device), IMAGE_SIZE)) for part in images.split(_BATCH)]
        return tuple(torch.cat(logits).float().log_softmax(1).cpu() for logits in zip(*parts, strict=True))  # type: ignore[return-value]


class _Block(nn.Module):
    """A residual block; it halves the resolution where it changes the width."""

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        stride = 1 if in_width == width else 2
        self.conv1 = nn.Conv2d(in_width, width, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut = (
            nn.Identity()
            if in_width == width
            else nn.Sequential(nn.Conv2d(in_width, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width))
        )

    def forward(self, x: Tensor) -> Tensor:
        residual = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(self.shortcut(x) + residual)


def save_classifier(classifier: Classifier, folder: Path) -> None:
    """Write a model folder."""
    names = {"concepts": classifier.concepts, "styles": classifier.styles}
    # Batch norm counts its batches in integers; only training reads them
    tensors = {name: tensor for name, tensor in classifier.state_dict().items() if tensor.is_floating_point()}
    model_folder.save(folder, {"stage": STAGE, "model": names}, tensors)


def load_classifier(source: str | Path, device: str | torch.device = "cpu") -> Classifier:
    """Load a judge that `python -m dalle judge` has trained, in eval mode.

    Raises:
        ValueError: the folder does not exist or holds something else.
    """
    folder = resolve(source)
    content = model_folder.ModelFolder(folder)
    if content.config.get("stage") != STAGE:
        raise ValueError(
            f"{source}: stage is {content.config.get('stage')}, expected a judge: python -m dalle judge trains one"
        )
    names = from_dict(ClassifierConfig, content.config.get("model") or {}, content.origin)
    classifier = Classifier(names.concepts, names.styles)
    tensors = dict(open_tensors(folder / WEIGHTS))
    # Counters are not in the file, and loading is strict: the module's own stand in
    counters = {name: tensor for name, tensor in classifier.state_dict().items() if not tensor.is_floating_point()}
    return load_weights(classifier, tensors | counters, str(folder), device, None)
