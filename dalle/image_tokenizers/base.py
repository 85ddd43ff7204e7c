"""The contract that every image tokenizer keeps: pixels to a grid of codes and back. Holds no network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

Reduce = Callable[[Tensor], Tensor]  # sums a tensor over processes


class Reconstruction(NamedTuple):
    """What a training step needs of one pass through an image tokenizer."""

    images: Tensor
    """Float [B, 3, H, W] on the scale of [0, 1], not clamped."""
    codes: Tensor
    """Int64 [B, h, w]."""
    losses: dict[str, Tensor]
    """The model's own losses by name, scalars, each a mean over the batch."""


class ImageTokenizer(nn.Module, ABC):
    """Turns images into codes and codes into images.

    Attributes:
        codebook_size: number of codes; a code is at least 0 and below it.
        image_size: pixels a side of the images it is made for. It is convolutional: other sizes that `factor` divides
            work too.
        factor: pixels a side that one code stands for.
    """

    codebook_size: int
    image_size: int
    factor: int

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes of an image of `image_size`."""
        return self.image_size // self.factor, self.image_size // self.factor

    @property
    @abstractmethod
    def last_layer(self) -> nn.Parameter:
        """The decoder's last weight, where the adversarial loss is balanced against the reconstruction."""

    @abstractmethod
    def forward(self, images: Tensor, *, temperature: float = 1.0) -> Reconstruction:
        """One pass for training.

        Args:
            images: float [B, 3, H, W] in [0, 1]; H and W divisible by `factor`.
            temperature: of the relaxation, above 0; only Gumbel quantization uses it.

        Raises:
            ValueError: the images are not of that form.
        """

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """The code of each cell, without noise (in eval mode the same every time).

        Args:
            images: float [B, 3, H, W] in [0, 1]; H and W divisible by `factor`.

        Returns:
            Codes, int64 [B, H / factor, W / factor], raster order.

        Raises:
            ValueError: the images are not of that form.
        """
        self._check_images(images)
        return self._encode(images)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """The image of a grid of codes.

        Args:
            codes: int64 [B, h, w], each at least 0 and below `codebook_size`.

        Returns:
            Float32 [B, 3, h * factor, w * factor], clamped to [0, 1].

        Raises:
            ValueError: the codes are not of that form.
        """
        if codes.ndim != 3 or codes.dtype != torch.int64:
            raise ValueError(f"codes are {_form(codes)}; expected int64 [B, h, w]")
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.codebook_size:
            raise ValueError(
                f"codes run from {int(codes.min())} to {int(codes.max())}; "
                f"this tokenizer has the codes 0 to {self.codebook_size - 1}"
            )
        return self.from_vectors(self.vectors(codes)).float().clamp(0, 1)

    @abstractmethod
    def vectors(self, codes: Tensor) -> Tensor:
        """What the decoder reads in place of codes.

        Args:
            codes: int64 [B, h, w], each at least 0 and below `codebook_size`.

        Returns:
            Vectors, float [B, C, h, w]. Each depends on its own code only.
        """

    @abstractmethod
    def from_vectors(self, vectors: Tensor) -> Tensor:
        """The image of a grid of vectors, which need not be those of codes; gradients reach them.

        Args:
            vectors: float [B, C, h, w], any h and w.

        Returns:
            Float32 [B, 3, h * factor, w * factor] on the scale of [0, 1], not clamped.
        """

    @torch.no_grad()
    def codebook_vectors(self) -> Tensor:
        """The vectors of all codes, float32 [codebook_size, C]."""
        codes = torch.arange(self.codebook_size, device=self.last_layer.device)
        return self.vectors(codes[None, None])[0, :, 0].T.float()

    def on_step_end(self, reduce: Reduce | None = None) -> None:
        """Apply what the training passes since the last step have gathered (a learnt codebook overrides this).

        Args:
            reduce: sums a tensor over processes; None where there is one.
        """

    def reset_statistics(self) -> None:
        """Forget what has been gathered since the last step: for a step that is skipped."""

    @abstractmethod
    def _encode(self, images: Tensor) -> Tensor: ...

    def _check_images(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(f"images are {_form(images)}; expected floats in [0, 1] of shape [B, 3, H, W]")
        height, width = images.shape[2:]
        if height % self.factor or width % self.factor:
            raise ValueError(f"images are {height}x{width}; both sides must be divisible by {self.factor}")


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
