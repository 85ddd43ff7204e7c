"""The interface of every image tokenizer: pixels to a grid of codes and back. Holds no network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over all processes (all-reduce)."""


class Reconstruction(NamedTuple):
    """The result of an image tokenizer's forward pass in training."""

    images: Tensor
    """Float [B, 3, H, W], nominally in [0, 1] but not clamped."""
    codes: Tensor
    """Int64 [B, h, w]."""
    losses: dict[str, Tensor]
    """The model's own losses by name; scalars, each a mean over the batch."""


class ImageTokenizer(nn.Module, ABC):
    """Turns images into codes and codes into images.

    Attributes:
        config: its architecture, of its own class of configs.
        codebook_size: number of codes; codes are in [0, codebook_size).
        image_size: height and width of the images it is meant for, in pixels. It is convolutional, so other sizes that
            `factor` divides work too.
        factor: downsampling factor: height and width of the pixels that one code covers.
    """

    config: Any
    codebook_size: int
    image_size: int
    factor: int

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes for an image of `image_size`."""
        return self.image_size // self.factor, self.image_size // self.factor

    @property
    @abstractmethod
    def last_layer(self) -> nn.Parameter:
        """The decoder's last weight, on which the adversarial loss is balanced against the reconstruction loss."""

    @abstractmethod
    def forward(self, images: Tensor, *, temperature: float = 1.0) -> Reconstruction:
        """Encode and decode images, for training.

        Args:
            images: float [B, 3, H, W] in [0, 1]; H and W multiples of `factor`.
            temperature: of the Gumbel-softmax relaxation, above 0; other quantizers ignore it.

        Raises:
            ValueError: the images have another shape or type.
        """

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Encode images deterministically, without sampling noise (dropout aside: use eval mode).

        Args:
            images: float [B, 3, H, W] in [0, 1]; H and W multiples of `factor`.

        Returns:
            Codes, int64 [B, H / factor, W / factor], in raster order.

        Raises:
            ValueError: the images have another shape or type.
        """
        self._check_images(images)  # a wrong size would give a grid that no model was trained on, without an error
        return self._encode(images)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Decode a grid of codes to an image.

        Args:
            codes: int64 [B, h, w], each in [0, codebook_size).

        Returns:
            Float32 [B, 3, h * factor, w * factor], clamped to [0, 1].

        Raises:
            ValueError: the codes have another shape or type, or are out of range.
        """
        if codes.ndim != 3 or codes.dtype != torch.int64:
            raise ValueError(f"codes are {_describe(codes)}; expected int64 [B, h, w]")
        # Waits for the device once; there, an index out of range would be an assertion that ends the process
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.codebook_size:
            raise ValueError(
                f"codes range from {int(codes.min())} to {int(codes.max())}; "
                f"this tokenizer's codes are 0 to {self.codebook_size - 1}"
            )
        return self.decode_latents(self.embed_codes(codes)).float().clamp(0, 1)

    @abstractmethod
    def embed_codes(self, codes: Tensor) -> Tensor:
        """Look up the codebook vectors of codes: the decoder's input.

        Args:
            codes: int64 [B, h, w], each in [0, codebook_size).

        Returns:
            Latents, float [B, C, h, w]. Each depends on its own code only.
        """

    @abstractmethod
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Decode latents, which need not be codebook vectors, to images; differentiable.

        Args:
            latents: float [B, C, h, w], any h and w.

        Returns:
            Float32 [B, 3, h * factor, w * factor], nominally in [0, 1] but not clamped.
        """

    @torch.no_grad()
    def codebook_embeddings(self) -> Tensor:
        """The latent vectors of all codes, float32 [codebook_size, C]."""
        # As an image of one row, since only `embed_codes` knows how a tokenizer stores its codebook
        codes = torch.arange(self.codebook_size, device=self.last_layer.device)
        return self.embed_codes(codes[None, None])[0, :, 0].T.float()

    def on_step_end(self, reduce: Reduce | None = None) -> None:
        """Apply the statistics gathered since the last optimizer step, such as those of an EMA codebook.

        Args:
            reduce: sums a tensor over processes; None if there is only one.
        """

    def reset_statistics(self) -> None:
        """Discard the statistics gathered since the last step, for a step that is skipped."""

    @abstractmethod
    def _encode(self, images: Tensor) -> Tensor: ...

    def _check_images(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(f"images are {_describe(images)}; expected floats in [0, 1] of shape [B, 3, H, W]")
        height, width = images.shape[2:]
        if height % self.factor or width % self.factor:
            raise ValueError(f"images are {height}x{width}; both sides must be multiples of {self.factor}")


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
