"""What is optimised, and how an image comes of it: vectors of codes, pixels, or a Fourier spectrum.

Shapes: H W pixels, h w cells, C channels of a code's vector, K codes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dalle.apps.vqgan_clip.tiles import decode_in_tiles
from dalle.image_tokenizers import ImageTokenizer

_STEP = 0.4  # learning rate over the root mean square of the codebook, whose scale differs from model to model
_SCORES = 2**25  # cells x codes compared at a time: 128 MiB of float32


class Canvas(nn.Module, ABC):
    """Values that gradients change, and the image of any such values.

    Attributes:
        values: what is optimised.
        average: its moving average, which the finished image is drawn from.
        start: what it was at the beginning, for a pull back to it.
        rate: the learning rate that suits it.
    """

    values: nn.Parameter
    average: Tensor
    start: Tensor
    rate: float

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values.detach().clone())
        self.register_buffer("average", values.detach().clone())
        self.register_buffer("start", values.detach().clone())

    @abstractmethod
    def draw(self, values: Tensor) -> Tensor:
        """The image [1, 3, H, W] in [0, 1] of some values, with gradients to them."""

    @abstractmethod
    def values_of(self, image: Tensor) -> Tensor:
        """The values of an image [1, 3, H, W] in [0, 1], as near as can be."""

    @torch.no_grad()
    def restart(self, image: Tensor) -> None:
        """Go on from an image [1, 3, H, W]: it becomes the start, too."""
        values = self.values_of(image)
        for tensor in (self.values, self.average, self.start):
            tensor.copy_(values)

    @torch.no_grad()
    def on_step_end(self, decay: float, steps: int) -> None:
        """Bring the values back into their range, and let the average follow them.

        Args:
            decay: of the average; smaller in the first steps, so that the start is soon forgotten.
            steps: since the values were last set by an image, this one included.
        """
        self.limit()
        self.average.lerp_(self.values, 1 - min(decay, steps / (steps + 9)))

    def limit(self) -> None:
        """Bring the values back into their range; the spectrum has none."""


class LatentCanvas(Canvas):
    """Vectors in place of codes: drawn from the nearest code of each, the gradient passes straight through.

    So does VQGAN-CLIP. It works for all image tokenizers, as each has vectors that its decoder reads. After each step
    every channel is brought back to where the codebook lies.
    """

    codebook: Tensor
    lowest: Tensor
    highest: Tensor

    def __init__(self, tokenizer: ImageTokenizer, values: Tensor, tile: int) -> None:
        super().__init__(values)
        self.tokenizer = [tokenizer]  # in a list, so that its weights are no part of the painting's state
        self.tile = tile
        codebook = tokenizer.codebook_embeddings()  # [K, C]
        self.rate = _STEP * float(codebook.square().mean().sqrt())
        self.register_buffer("codebook", codebook, persistent=False)
        self.register_buffer("lowest", codebook.amin(0)[:, None, None], persistent=False)
        self.register_buffer("highest", codebook.amax(0)[:, None, None], persistent=False)

    def draw(self, values: Tensor) -> Tensor:
        """Quantize latents [1, C, h, w] with a straight-through gradient, and decode them."""
        nearest = self.tokenizer[0].embed_codes(self.codes(values)).float()
        straight = values + (nearest - values).detach()
        return within(decode_in_tiles(self.tokenizer[0], straight, self.tile), 0.0, 1.0)

    def values_of(self, image: Tensor) -> Tensor:
        """The codebook vectors [1, C, h, w] of the encoded image."""
        return self.tokenizer[0].embed_codes(self.tokenizer[0].encode(image)).float()

    @torch.no_grad()
    def codes(self, values: Tensor) -> Tensor:
        """The nearest code [1, h, w] of each vector of [1, C, h, w]."""
        flat = rearrange(values, "b c h w -> (b h w) c")
        squares = self.codebook.square().sum(1)
        rows = max(_SCORES // len(self.codebook), 1)
        near = [torch.addmm(squares, part, self.codebook.T, alpha=-2).argmin(1) for part in flat.split(rows)]
        return torch.cat(near).view(len(values), *values.shape[2:])

    def limit(self) -> None:
        """Clamp each channel to the range of the codebook."""
        self.values.copy_(self.values.maximum(self.lowest).minimum(self.highest))


class PixelCanvas(Canvas):
    """The image itself."""

    rate = 0.02

    def draw(self, values: Tensor) -> Tensor:
        """Return the pixels themselves."""
        return values

    def values_of(self, image: Tensor) -> Tensor:
        """Return the image itself."""
        return image

    def limit(self) -> None:
        """Clamp pixels to [0, 1]."""
        self.values.clamp_(0, 1)


class FourierCanvas(Canvas):
    """The spectrum of the image before a sigmoid, low frequencies scaled up, colours apart from brightness.

    Olah et al. 2017, "Feature Visualization", on preconditioning. Values are [1, 3, H, W // 2 + 1, 2], the real and
    the imaginary part.
    """

    scale: Tensor
    colours: Tensor
    rate = 0.05

    def __init__(self, image: Tensor) -> None:
        height, width = image.shape[2:]
        down = torch.fft.fftfreq(height, device=image.device)[:, None]
        across = torch.fft.rfftfreq(width, device=image.device)[None]
        least = 1 / max(height, width)
        scale = 1 / (down.square() + across.square()).sqrt().clamp(min=least)  # [H, W // 2 + 1]
        basis = [[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]]  # brightness, warm to cold, green to purple
        strength = torch.tensor([1.0, 0.4, 0.3], device=image.device)[:, None]
        colours = F.normalize(torch.tensor(basis, device=image.device), dim=1) * strength
        super().__init__(_spectrum(image, scale, colours))
        self.extent = (height, width)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("colours", colours, persistent=False)

    def draw(self, values: Tensor) -> Tensor:
        """Inverse Fourier transform, color basis and sigmoid."""
        spectrum = torch.view_as_complex(values.contiguous()) * self.scale
        x = torch.fft.irfft2(spectrum, s=self.extent, norm="ortho")
        return torch.einsum("bkhw,kc->bchw", x, self.colours).sigmoid()

    def values_of(self, image: Tensor) -> Tensor:
        """The spectrum of an image [1, 3, H, W]."""
        return _spectrum(image, self.scale, self.colours)


def _spectrum(image: Tensor, scale: Tensor, colours: Tensor) -> Tensor:
    x = image.clamp(0.01, 0.99).logit()
    x = torch.einsum("bchw,ck->bkhw", x, colours.inverse())
    return torch.view_as_real(torch.fft.rfft2(x, norm="ortho") / scale)


def within(x: Tensor, lowest: float, highest: float) -> Tensor:
    """clamp, but keeps the gradient that leads back into the range: clamp's own is zero outside for ever."""
    clamped: Tensor = _Within.apply(x, lowest, highest)
    return clamped


class _Within(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, lowest: float, highest: float) -> Tensor:
        ctx.save_for_backward(x < lowest, x > highest)
        return x.clamp(lowest, highest)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        under, over = ctx.saved_tensors
        (grad,) = grads
        outwards = (under & (grad > 0)) | (over & (grad < 0))
        return grad.masked_fill(outwards, 0), None, None


def start_image(kind: str, height: int, width: int, generator: torch.Generator) -> Tensor:
    """An image [1, 3, height, width] to start from: noise, gradient, grey, white, else smooth random colours."""
    makers: dict[str, Callable[[], Tensor]] = {
        "grey": lambda: torch.full((1, 3, height, width), 0.5),
        "white": lambda: torch.ones(1, 3, height, width),
        "noise": lambda: torch.rand(1, 3, height, width, generator=generator),
        "gradient": lambda: _spread(torch.rand(1, 3, 2, 2, generator=generator), height, width),
    }
    if kind in makers:
        return makers[kind]()
    cells = torch.rand(1, 3, max(2, height // 8), max(2, width // 8), generator=generator)
    return 0.5 + 0.5 * (_spread(cells, height, width) - 0.5)


def _spread(cells: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(cells, (height, width), mode="bilinear", align_corners=True)
