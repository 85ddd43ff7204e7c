"""Trains the judge of drawings on all images of a data set, the held-out ones too."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dalle.apps.judging.classifier import SIDE, Classifier
from dalle.apps.judging.drawings import Drawings, images_of

_READ = 256  # images at a time


@dataclass(frozen=True)
class JudgeOptions:
    """How a judge is trained."""

    epochs: int = 40
    """Times that each image is shown."""
    batch_size: int = 128
    lr: float = 2e-3
    """Largest learning rate: it rises for an epoch, then falls to 0 along a cosine."""
    seed: int = 20

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: at least 1")


def train_judge(
    drawings: Drawings,
    options: JudgeOptions,
    device: str | torch.device = "cpu",
    progress: Callable[[int, float], object] | None = None,
) -> Classifier:
    """Train a judge.

    Args:
        drawings: All images, plain, at least 64 pixels a side or so.
        options: How.
        device: Where.
        progress: Called with the step and its loss.

    Returns:
        The judge, in evaluation mode.
    """
    concepts = sorted({concept.phrase for concept in drawings.concepts})
    styles = sorted(set(drawings.styles))
    places = {name: place for place, name in enumerate(concepts)}
    of_concept = torch.tensor([places[concept.phrase] for concept in drawings.concepts])
    of_style = torch.tensor([styles.index(style) for style in drawings.styles])
    images = _read(drawings)
    torch.manual_seed(options.seed)
    judge = Classifier(concepts, styles).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(judge.parameters(), lr=options.lr, weight_decay=0.05)
    generator = torch.Generator().manual_seed(options.seed)
    each = max(1, len(images) // options.batch_size)
    steps = options.epochs * each
    for step in range(steps):
        if step % each == 0:
            order = torch.randperm(len(images), generator=generator)
        rows = order[step % each * options.batch_size :][: options.batch_size]
        optimizer.param_groups[0]["lr"] = options.lr * _schedule(step, each, steps)
        shown = changed(images[rows].float() / 255, generator).to(device)
        concept_logits, style_logits = judge(shown.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(concept_logits, of_concept[rows].to(device), label_smoothing=0.05)
        loss = loss + F.cross_entropy(style_logits, of_style[rows].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if progress is not None:
            progress(step, loss.item())
    return judge.eval()


def changed(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images [B, 3, S, S] as drawings differ from them: moved by up to 6 %, sized 85 to 110 %, blurred, noisy."""
    count = len(images)
    uniform = torch.rand(5, count, generator=generator)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / (0.85 + 0.25 * uniform[0])
    theta[:, :, 2] = 0.12 * (2 * uniform[1:3].T - 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    low = F.interpolate(F.avg_pool2d(moved, 2), images.shape[-2:], mode="bilinear", align_corners=False)
    share = (2 * uniform[3] - 1).clamp(min=0)[:, None, None, None]  # half of the images stay sharp
    blurred = moved + share * (low - moved)
    noise = torch.randn(images.shape, generator=generator) * (0.04 * uniform[4])[:, None, None, None]
    return (blurred + noise).clamp(0, 1)


def _read(drawings: Drawings) -> Tensor:
    """All images, uint8 [N, 3, 64, 64]."""
    parts = []
    for first in range(0, len(drawings), _READ):
        some = images_of(drawings, range(first, min(first + _READ, len(drawings))))
        parts.append((some * 255).round().byte())
    images = torch.cat(parts)
    assert images.shape[-2:] == (SIDE, SIDE)
    return images


def _schedule(step: int, warmup: int, steps: int) -> float:
    """A share of the largest rate."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
