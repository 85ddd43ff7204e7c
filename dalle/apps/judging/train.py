"""Trains the judge's classifier on all images of a data set, the held-out ones too."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dalle.apps.judging.classifier import IMAGE_SIZE, Classifier
from dalle.apps.judging.drawings import Drawings, load_images
from dalle.config.ranges import PositiveInt, Range, Seed, check_ranges

_BATCH = 256  # images read at a time


@dataclass(frozen=True)
class JudgeOptions:
    """Hyperparameters of the judge's training."""

    epochs: PositiveInt = 40
    """Passes over the images."""
    batch_size: PositiveInt = 128
    lr: Annotated[float, Range(0, above=True, ceiling=1000)] = 2e-3
    """Peak learning rate, after one epoch of linear warmup; then it decays to 0 along a cosine."""
    seed: Seed = 20
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the forward and backward passes (autocast); weights, losses and the trained judge are in fp32."""

    def __post_init__(self) -> None:
        check_ranges(self)


def train_judge(
    drawings: Drawings,
    options: JudgeOptions,
    device: str | torch.device = "cpu",
    progress: Callable[[int, float], object] | None = None,
) -> Classifier:
    """Train a classifier of concepts and styles from scratch.

    Args:
        drawings: all images, plain, of 64x64 pixels.
        options: hyperparameters.
        device: where to train.
        progress: called with each step, from 0, and its loss.

    Returns:
        The classifier, in eval mode.

    Raises:
        ValueError: the loss is not finite.
    """
    concepts = sorted({concept.phrase for concept in drawings.concepts})
    styles = sorted(set(drawings.styles))
    concept_ids = {name: number for number, name in enumerate(concepts)}
    concept_targets = torch.tensor([concept_ids[concept.phrase] for concept in drawings.concepts])
    style_targets = torch.tensor([styles.index(style) for style in drawings.styles])
    images = _load_all(drawings)
    torch.manual_seed(options.seed)
    classifier = Classifier(concepts, styles).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=options.lr, weight_decay=0.05)
    generator = torch.Generator().manual_seed(options.seed)
    steps_per_epoch = max(1, len(images) // options.batch_size)  # the rest of an epoch is left out
    steps = options.epochs * steps_per_epoch
    for step in range(steps):
        if step % steps_per_epoch == 0:
            order = torch.randperm(len(images), generator=generator)
        rows = order[step % steps_per_epoch * options.batch_size :][: options.batch_size]
        optimizer.param_groups[0]["lr"] = options.lr * _lr_factor(step, steps_per_epoch, steps)
        batch = augment(images[rows].float() / 255, generator).to(device)
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=options.precision == "bf16"):
            concept_logits, style_logits = classifier(batch.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(concept_logits.float(), concept_targets[rows].to(device), label_smoothing=0.05)
        loss = loss + F.cross_entropy(style_logits.float(), style_targets[rows].to(device))
        value = loss.item()
        if not math.isfinite(value):
            raise ValueError(f"the loss is {value} in step {step}: give a lower lr than {options.lr}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if progress is not None:
            progress(step, value)
    return classifier.eval()


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift images [B, 3, S, S] by up to 6 %, scale to 85-110 %, blur half of them, add noise: as samples differ."""
    count = len(images)
    uniform = torch.rand(5, count, generator=generator)
    theta = torch.zeros(count, 2, 3)
    # grid_sample asks where each output pixel comes from, hence the inverse of the scale
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / (0.85 + 0.25 * uniform[0])
    theta[:, :, 2] = 0.12 * (2 * uniform[1:3].T - 1)  # in half sides: 6 % of the image
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    # A blur: half the resolution and back
    low = F.interpolate(F.avg_pool2d(moved, 2), images.shape[-2:], mode="bilinear", align_corners=False)
    blur = (2 * uniform[3] - 1).clamp(min=0)[:, None, None, None]  # 0 for half of the images
    blurred = moved + blur * (low - moved)
    noise = torch.randn(images.shape, generator=generator) * (0.04 * uniform[4])[:, None, None, None]
    return (blurred + noise).clamp(0, 1)


def _load_all(drawings: Drawings) -> Tensor:
    """All images, uint8 [N, 3, 64, 64]."""
    parts = []
    for first in range(0, len(drawings), _BATCH):
        batch = load_images(drawings, range(first, min(first + _BATCH, len(drawings))))
        parts.append((batch * 255).round().byte())
    images = torch.cat(parts)
    assert images.shape[-2:] == (IMAGE_SIZE, IMAGE_SIZE)
    return images


def _lr_factor(step: int, warmup: int, steps: int) -> float:
    """The learning rate as a fraction of its peak."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
