"""Parametrizations of an image that is optimized: latents of an image tokenizer, pixels, or a Fourier spectrum.

Shapes: H W pixels, h w cells, C channels of a latent, K codes.
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

_RELATIVE_LR = 0.4  # learning rate over the RMS of the codebook, whose scale differs from model to model
_MAX_DISTANCES = 2**25  # cells x codes compared at a time: 128 MiB of float32


class Canvas(nn.Module, ABC):
    """Parameters, and the image that they render to.

    Attributes:
        values: the parameters that are optimized.
        average: their EMA, from which the finished image is rendered.
        initial: the values at the beginning, for an L2 loss toward them.
        lr: the learning rate that suits this parametrization.
    """

    values: nn.Parameter
    average: Tensor
    initial: Tensor
    lr: float

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values.detach().clone())
        self.register_buffer("average", values.detach().clone())
        self.register_buffer("initial", values.detach().clone())

    @abstractmethod
    def render(self, values: Tensor) -> Tensor:
        """Values to an image [1, 3, H, W] in [0, 1], differentiably."""

    @abstractmethod
    def encode(self, image: Tensor) -> Tensor:
        """An image [1, 3, H, W] in [0, 1] to values that render to it, as closely as the canvas can."""

    @torch.no_grad()
    def reset(self, image: Tensor) -> None:
        """Start again from an image [1, 3, H, W]: values, average and initial values become those of it."""
        values = self.encode(image)
        for tensor in (self.values, self.average, self.initial):
            tensor.copy_(values)

    @torch.no_grad()
    def on_step_end(self, decay: float, steps: int) -> None:
        """Project the values into their range and update the EMA.

        Args:
            decay: of the EMA.
            steps: since the canvas was last set to an image, this one included.
        """
        self.project()
        # As with every EMA that starts from its first value, a full decay in the first steps would show the start
        self.average.lerp_(self.values, 1 - min(decay, steps / (steps + 9)))

    def project(self) -> None:
        """Bring the values back into their range; a canvas without one leaves them."""


class LatentCanvas(Canvas):
    """Latents of an image tokenizer, quantized to their nearest codes with a straight-through gradient.

    The parametrization of VQGAN-CLIP (arXiv 2204.08583, section 3). It works for any image tokenizer, as all of them
    have a vector for each code that their decoder reads. After each step every channel is clamped to the range that
    the codebook covers in it: latents far outside would take many steps to change their code again.
    """

    codebook: Tensor
    lowest: Tensor
    highest: Tensor

    def __init__(self, tokenizer: ImageTokenizer, values: Tensor, tile: int) -> None:
        super().__init__(values)
        self.tokenizer = [tokenizer]  # in a list, so that its weights are not part of the canvas's state
        self.tile = tile
        codebook = tokenizer.codebook_embeddings()  # [K, C]
        self.lr = _RELATIVE_LR * float(codebook.square().mean().sqrt())
        self.register_buffer("codebook", codebook, persistent=False)
        self.register_buffer("lowest", codebook.amin(0)[:, None, None], persistent=False)
        self.register_buffer("highest", codebook.amax(0)[:, None, None], persistent=False)

    def render(self, values: Tensor) -> Tensor:
        """Quantize latents [1, C, h, w] with a straight-through gradient, and decode them."""
        quantized = self.tokenizer[0].embed_codes(self.codes(values)).float()
        # Forward the vectors of the codes, backward as if nothing had been quantized
        straight_through = values + (quantized - values).detach()
        return clamp_with_grad(decode_in_tiles(self.tokenizer[0], straight_through, self.tile), 0.0, 1.0)

    def encode(self, image: Tensor) -> Tensor:
        """The codebook vectors [1, C, h, w] of the image's codes."""
        return self.tokenizer[0].embed_codes(self.tokenizer[0].encode(image)).float()

    @torch.no_grad()
    def codes(self, values: Tensor) -> Tensor:
        """The nearest code [1, h, w] of each latent of [1, C, h, w]."""
        latents = rearrange(values, "b c h w -> (b h w) c")
        # argmin of |c|^2 - 2 z.c, which is |z - c|^2 without |z|^2, the same for all codes
        squared_norms = self.codebook.square().sum(1)
        rows = max(_MAX_DISTANCES // len(self.codebook), 1)
        parts = [torch.addmm(squared_norms, part, self.codebook.T, alpha=-2).argmin(1) for part in latents.split(rows)]
        return torch.cat(parts).view(len(values), *values.shape[2:])

    def project(self) -> None:
        """Clamp each channel to the range of the codebook."""
        self.values.copy_(self.values.maximum(self.lowest).minimum(self.highest))


class PixelCanvas(Canvas):
    """The pixels themselves."""

    lr = 0.02

    def render(self, values: Tensor) -> Tensor:
        """Return the pixels themselves."""
        return values

    def encode(self, image: Tensor) -> Tensor:
        """Return the image itself."""
        return image

    def project(self) -> None:
        """Clamp pixels to [0, 1]."""
        self.values.clamp_(0, 1)


class FourierCanvas(Canvas):
    """A Fourier spectrum of the image before a sigmoid, with decorrelated colors and low frequencies scaled up.

    Olah et al. 2017, "Feature Visualization", section on preconditioning. Values are [1, 3, H, W // 2 + 1, 2], the
    real and the imaginary part.
    """

    scale: Tensor
    colors: Tensor
    lr = 0.05

    def __init__(self, image: Tensor) -> None:
        height, width = image.shape[2:]
        vertical = torch.fft.fftfreq(height, device=image.device)[:, None]
        horizontal = torch.fft.rfftfreq(width, device=image.device)[None]
        # 1 / frequency, the spectrum of natural images; the constant term is scaled as the lowest frequency
        lowest = 1 / max(height, width)
        scale = 1 / (vertical.square() + horizontal.square()).sqrt().clamp(min=lowest)  # [H, W // 2 + 1]
        basis = [[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]]  # brightness, red-blue, magenta-green
        strength = torch.tensor([1.0, 0.4, 0.3], device=image.device)[:, None]  # images vary less in color
        colors = F.normalize(torch.tensor(basis, device=image.device), dim=1) * strength
        super().__init__(_spectrum(image, scale, colors))
        self.resolution = (height, width)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("colors", colors, persistent=False)

    def render(self, values: Tensor) -> Tensor:
        """Inverse Fourier transform, color basis and sigmoid."""
        spectrum = torch.view_as_complex(values.contiguous()) * self.scale  # [1, 3, H, W // 2 + 1]
        x = torch.fft.irfft2(spectrum, s=self.resolution, norm="ortho")  # [1, 3, H, W]
        return torch.einsum("bkhw,kc->bchw", x, self.colors).sigmoid()

    def encode(self, image: Tensor) -> Tensor:
        """The spectrum of an image [1, 3, H, W]."""
        return _spectrum(image, self.scale, self.colors)


def _spectrum(image: Tensor, scale: Tensor, colors: Tensor) -> Tensor:
    """The inverse of `FourierCanvas.render`, except for values next to 0 and 1, whose logits are infinite."""
    x = image.clamp(0.01, 0.99).logit()
    x = torch.einsum("bchw,ck->bkhw", x, colors.inverse())
    return torch.view_as_real(torch.fft.rfft2(x, norm="ortho") / scale)


def clamp_with_grad(x: Tensor, lowest: float, highest: float) -> Tensor:
    """`clamp` that keeps gradients which lead back into the range; those of `clamp` are zero everywhere outside."""
    clamped: Tensor = _ClampWithGrad.apply(x, lowest, highest)
    return clamped


class _ClampWithGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, lowest: float, highest: float) -> Tensor:
        ctx.save_for_backward(x < lowest, x > highest)
        return x.clamp(lowest, highest)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        below, above = ctx.saved_tensors
        (grad,) = grads
        outwards = (below & (grad > 0)) | (above & (grad < 0))  # a descent step is against the gradient
        return grad.masked_fill(outwards, 0), None, None


def start_image(kind: str, height: int, width: int, generator: torch.Generator) -> Tensor:
    """An image [1, 3, height, width] to start from: noise, gradient, gray, white, else smooth random colors."""
    makers: dict[str, Callable[[], Tensor]] = {
        "gray": lambda: torch.full((1, 3, height, width), 0.5),
        "white": lambda: torch.ones(1, 3, height, width),
        "noise": lambda: torch.rand(1, 3, height, width, generator=generator),
        "gradient": lambda: _upsample(torch.rand(1, 3, 2, 2, generator=generator), height, width),
    }
    if kind in makers:
        return makers[kind]()
    coarse = torch.rand(1, 3, max(2, height // 8), max(2, width // 8), generator=generator)
    return 0.5 + 0.5 * (_upsample(coarse, height, width) - 0.5)  # half the contrast, around gray


def _upsample(coarse: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
