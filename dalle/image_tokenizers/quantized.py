"""The base of image tokenizers with an encoder, a quantizer and a decoder. Holds no network."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn

from dalle.image_tokenizers.base import ImageTokenizer, Reconstruction, Reduce
from dalle.image_tokenizers.quantize import Quantizer


class QuantizedTokenizer(ImageTokenizer):
    """Images to latents, which a quantizer turns into codes; codes to latents, which a decoder turns into images.

    Attributes:
        quantize: latents to codes and back.
        decoder: its output convolution is called `conv_out`.
    """

    quantize: Quantizer
    decoder: nn.Module

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight of the decoder's output convolution."""
        weight = self.decoder.get_submodule("conv_out").weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def forward(self, images: Tensor, *, temperature: float = 1.0) -> Reconstruction:
        """See `ImageTokenizer.forward`; the losses are the quantizer's."""
        self._check_images(images)
        quantized = self.quantize(self._latents(images), temperature)
        return Reconstruction(self.decode_latents(quantized.latents), quantized.codes, quantized.losses)

    def on_step_end(self, reduce: Reduce | None = None) -> None:
        """See `Quantizer.on_step_end`."""
        self.quantize.on_step_end(reduce)

    def reset_statistics(self) -> None:
        """See `Quantizer.reset_statistics`."""
        self.quantize.reset_statistics()

    def embed_codes(self, codes: Tensor) -> Tensor:
        """See `Quantizer.lookup`."""
        return self.quantize.lookup(codes)

    def _encode(self, images: Tensor) -> Tensor:
        return self.quantize.encode(self._latents(images))

    @abstractmethod
    def _latents(self, images: Tensor) -> Tensor:
        """What the quantizer reads, [B, C, h, w], of images [B, 3, H, W] in [0, 1]."""
