"""What every stage of training is to the loop: phases with losses, figures, images, and a folder that comes out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn

from dalle.checkpoints.tensors import Tensors
from dalle.data.loader import Batch
from dalle.training.optim import OptimConfig

Reduce = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Phase:
    """A part of one step: a module with its own optimiser. A GAN has two."""

    name: str
    module: nn.Module
    optim: OptimConfig


@dataclass(frozen=True)
class Samples:
    """Images that show how far the training is, drawn with fixed seeds, and figures of them."""

    image: Image.Image
    metrics: dict[str, float]


class Task(ABC):
    """A stage of training.

    Attributes:
        model: what is trained, averaged, validated and exported.
        state: all modules whose state a checkpoint keeps (the model, and perhaps a discriminator).
        phases: the phases of a step, in order.
        image_size: side of the images that it takes.
        tokens_per_image: for the rate that the progress bar shows.
        operations_per_image: floating-point operations of training on one image, if they can be told.
        needs_sync: whether the loop must know after each step if it was applied (EMA codebooks, several optimizers),
            which costs one synchronization of host and device.
    """

    model: nn.Module
    state: nn.ModuleDict
    phases: list[Phase]
    image_size: int
    tokens_per_image: int
    operations_per_image: float | None = None
    needs_sync: bool = False

    @abstractmethod
    def inputs(self, batch: Batch) -> Any:
        """Move a micro-batch to the device and make of it what `loss` takes."""

    @abstractmethod
    def loss(self, phase: Phase, inputs: Any, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a micro-batch, a mean over its images, and the figures to log."""

    def active(self, step: int) -> list[Phase]:
        """The phases that run at `step`."""
        return self.phases

    def on_step_end(self, reduce: Reduce) -> None:
        """Apply what the micro-batches of a step gathered; `reduce` sums a tensor over all processes."""

    def reset_statistics(self) -> None:
        """Forget what the micro-batches of a skipped step gathered."""

    def metrics(self, reduce: Reduce) -> dict[str, float]:
        """What is logged besides means, of all that was trained on since the last call; `reduce` as above."""
        return {}

    @abstractmethod
    def validate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Figures of `model` (the averaged weights) over validation batches."""

    @abstractmethod
    def sample_images(self, model: nn.Module, batch: Batch) -> Samples | None:
        """A sample image; None where a stage has none."""

    @abstractmethod
    def export(self, folder: Path, weights: Tensors) -> None:
        """Write the folder that `dalle.load_*` reads."""


class ContrastiveTask(Task):
    """A stage whose loss compares all images of a batch, so that it is no mean over micro-batches.

    What is compared are embeddings, one of each image or caption alone: they can be made in pieces.
    """

    @abstractmethod
    def embed(self, inputs: Any) -> tuple[Tensor, ...]:
        """Embeddings [B, D] of a micro-batch, of each kind that the loss compares."""

    @abstractmethod
    def batch_loss(self, embeds: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the embeddings of this process's whole batch, together with those of others, and figures to log."""

    def loss(self, phase: Phase, inputs: Any, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        return self.batch_loss(self.embed(inputs))
