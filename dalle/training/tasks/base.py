"""The interface between a training stage and the loop: phases with losses, metrics, sample images, export."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn

from dalle.checkpoints.lazy_tensor import Tensors
from dalle.data.batch import Batch
from dalle.training.optim import OptimConfig

Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over all processes (all-reduce)."""


@dataclass(frozen=True)
class Phase:
    """A part of a step: a module with its own optimizer. A GAN has two, generator and discriminator."""

    name: str
    module: nn.Module
    optim: OptimConfig


@dataclass(frozen=True)
class Samples:
    """Images sampled with fixed seeds to show the progress of training, and metrics of them."""

    image: Image.Image
    metrics: dict[str, float]


class Task(ABC):
    """A stage of training.

    Attributes:
        model: module that is trained, averaged by the EMA, validated and exported.
        state: all modules whose state a checkpoint includes (the model, and a discriminator if there is one).
        phases: phases of a step, in order.
        image_size: height and width of training images in pixels.
        tokens_per_image: number of tokens per training pair, for the throughput.
        operations_per_image: floating-point operations of training on one image; None if unknown.
        needs_sync: whether the loop must know after each step if it was applied (EMA codebooks, several optimizers),
            which costs one synchronization of host and device.
    """

    model: nn.Module
    state: nn.ModuleDict  # not always all of `model`: with LoRA the adapters only
    phases: list[Phase]
    image_size: int
    tokens_per_image: int
    operations_per_image: float | None = None
    needs_sync: bool = False

    @abstractmethod
    def inputs(self, batch: Batch) -> Any:
        """Convert a micro-batch to the inputs of `loss`, on the device."""

    @abstractmethod
    def loss(self, phase: Phase, inputs: Any, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a phase.

        Args:
            phase: phase of this task.
            inputs: result of `inputs` for a micro-batch.
            step: number of completed steps, for schedules.

        Returns:
            The mean loss over the images of the micro-batch, a scalar; and scalars to log, without gradient.
        """

    def active(self, step: int) -> list[Phase]:
        """Return the phases that run after `step` completed steps."""
        return self.phases

    def on_step_end(self, reduce: Reduce) -> None:
        """Apply statistics collected over the micro-batches of a step; `reduce` sums a tensor over all processes."""

    def reset_statistics(self) -> None:
        """Discard statistics collected over the micro-batches of a skipped step."""

    def metrics(self, reduce: Reduce) -> dict[str, float]:
        """Return metrics that are no means over micro-batches, for everything since the last call.

        Args:
            reduce: sums a tensor over all processes.
        """
        return {}

    @abstractmethod
    def validate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Compute validation metrics of `model`, which has the EMA weights if there is an EMA."""

    @abstractmethod
    def sample_images(self, model: nn.Module, batch: Batch) -> Samples | None:
        """Generate sample images; `batch` has validation pairs to reconstruct. None if the stage has no samples."""

    @abstractmethod
    def export(self, folder: Path, weights: Tensors) -> None:
        """Write a model folder, which the functions `dalle.load_*` read."""

    def check_data(self, images: int, batch_size: int) -> None:
        """Check that a data set of this many images suits the stage.

        Raises:
            ValueError: it does not.
        """


class ContrastiveTask(Task):
    """A stage with a contrastive loss over the full batch, which is not a mean over micro-batches.

    Each embedding depends on its own image or caption only, so micro-batches can be embedded separately (GradCache).
    """

    def check_data(self, images: int, batch_size: int) -> None:
        """Check that there are other pairs, and that no batch must contain one twice, to be contrasted with itself."""
        if images < 2:
            shown = f"{images} image{'s' * (images != 1)}"
            raise ValueError(f"the data set has {shown}: pairs are contrasted with others; give 2 at least")
        if images < batch_size:
            raise ValueError(
                f"run.batch_size is {batch_size}, and the data set has {images} images: each would be contrasted with "
                f"its own copies in the batch; set run.batch_size={images} or less"
            )

    @abstractmethod
    def embed(self, inputs: Any) -> tuple[Tensor, ...]:
        """Embed a micro-batch; returns one tensor [B, D] per modality."""

    @abstractmethod
    def batch_loss(self, embeds: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss from this process's embeddings of the full batch, gathering those of other processes.

        Returns:
            The loss, a scalar; and scalars to log.
        """

    def loss(self, phase: Phase, inputs: Any, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch that is a single micro-batch; with more of them `training.grad_cache` calls both parts."""
        return self.batch_loss(self.embed(inputs))
