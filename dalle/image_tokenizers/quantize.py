"""Quantizers: a grid of vectors to a grid of codes and back. Vector quantization, Gumbel-softmax, finite scalars.

Shapes: B images, h x w cells, C channels of a code, K codes, N = B * h * w cells.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import field
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dalle.config import check_total, config
from dalle.image_tokenizers.base import Reduce
from dalle.ranges import Range, Size


@config
class GumbelConfig:
    """Gumbel-softmax quantizer, as taming's GumbelQuantize."""

    kind: Literal["gumbel"] = "gumbel"
    """Gumbel-softmax relaxation."""
    codebook_size: Size = 1024
    """Number of codes."""
    code_channels: Size = 64
    """Channels of a code's vector."""
    straight_through: bool = False
    """Pass on the sampled code's own vector, with the gradient of the relaxation."""


@config
class FSQConfig:
    """Finite scalar quantization (arXiv 2309.15505)."""

    kind: Literal["fsq"] = "fsq"
    """Finite scalar quantization: no codebook to learn, so no dead codes."""
    levels: list[Annotated[int, Range(2, ceiling=10**12)]] = field(default_factory=lambda: [8, 5, 5, 5])
    """Levels of each channel; their product is the number of codes."""

    def __post_init__(self) -> None:
        if not self.levels:
            raise ValueError("levels is empty; give at least one channel, each of at least 2 levels")
        check_total(math.prod(self.levels), f"levels {self.levels}")


class Quantized(NamedTuple):
    vectors: Tensor  # [B, C, h, w], float32
    codes: Tensor  # int64 [B, h, w]
    losses: dict[str, Tensor]


class Quantizer(nn.Module, ABC):
    """Between an encoder's `input_channels` and a decoder's: `code_channels` go in and come out."""

    codebook_size: int
    code_channels: int

    @abstractmethod
    def forward(self, z: Tensor, temperature: float) -> Quantized:
        """Quantize z [B, C, h, w] so that gradients reach it."""

    @abstractmethod
    def encode(self, z: Tensor) -> Tensor:
        """Codes [B, h, w] of z [B, C, h, w], without noise."""

    @abstractmethod
    def lookup(self, codes: Tensor) -> Tensor:
        """Vectors [B, C, h, w] of codes [B, h, w]."""

    def on_step_end(self, reduce: Reduce | None = None) -> None:
        """Apply what the training passes since the last step have gathered; most quantizers gather nothing."""

    def reset_statistics(self) -> None:
        """Forget what has been gathered."""


class GumbelQuantizer(Quantizer):
    """Relaxed one-hot codes (taming's GumbelQuantize); `encode` takes the likeliest code, with no noise.

    The loss "kl" is the divergence of the codes' distribution from the uniform one, in nats a code.
    """

    def __init__(self, config: GumbelConfig):
        super().__init__()
        self.config = config
        self.codebook_size, self.code_channels = config.codebook_size, config.code_channels
        self.proj = nn.Conv2d(config.code_channels, config.codebook_size, 1)
        self.embed = nn.Embedding(config.codebook_size, config.code_channels)
        nn.init.uniform_(self.embed.weight, -1 / config.codebook_size, 1 / config.codebook_size)

    def forward(self, z: Tensor, temperature: float) -> Quantized:
        logits = self._logits(z)
        relaxed = F.gumbel_softmax(logits, temperature, hard=self.config.straight_through, dim=1)
        with torch.autocast(z.device.type, enabled=False):
            vectors = torch.einsum("bkhw,kc->bchw", relaxed, self.embed.weight.float())
        return Quantized(vectors, relaxed.argmax(1), {"kl": kl_to_uniform(logits)})

    def encode(self, z: Tensor) -> Tensor:
        return self._logits(z).argmax(1)

    def lookup(self, codes: Tensor) -> Tensor:
        return rearrange(self.embed(codes), "b h w c -> b c h w")

    def _logits(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            return self.proj(z.to(self.proj.weight.dtype)).float()


class FSQQuantizer(Quantizer):
    """Each channel is squashed and rounded to one of a few levels; the code is their mixed-radix number.

    Section 3 and the listing of appendix A of arXiv 2309.15505. Vectors are on the scale of [-1, 1]. No losses.
    """

    levels: Tensor
    basis: Tensor

    def __init__(self, config: FSQConfig):
        super().__init__()
        self.codebook_size, self.code_channels = math.prod(config.levels), len(config.levels)
        basis = [math.prod(config.levels[:channel]) for channel in range(len(config.levels))]
        self.register_buffer("levels", torch.tensor(config.levels)[:, None, None], persistent=False)
        self.register_buffer("basis", torch.tensor(basis)[:, None, None], persistent=False)

    def forward(self, z: Tensor, temperature: float) -> Quantized:
        bounded = self.bound(z)
        steps = bounded + (bounded.round() - bounded).detach()
        return Quantized(steps / (self.levels // 2), self._number(steps), {})

    def encode(self, z: Tensor) -> Tensor:
        return self._number(self.bound(z).round())

    def lookup(self, codes: Tensor) -> Tensor:
        digits = codes[:, None] // self.basis % self.levels  # [B, C, h, w]
        half = self.levels // 2
        return (digits - half).float() / half

    def bound(self, z: Tensor, margin: float = 1e-3) -> Tensor:
        """Squash each channel of z [B, C, h, w] so that rounding gives exactly its number of levels.

        An even number of levels lies half a step off, which the shift inside the tanh makes good: 0 stays near 0.
        """
        half = (self.levels - 1) * (1 - margin) / 2
        offset = 0.5 * (self.levels % 2 == 0)
        return (z.float() + (offset / half).tan()).tanh() * half - offset

    def _number(self, steps: Tensor) -> Tensor:
        """Mixed-radix number [B, h, w] of rounded steps [B, C, h, w], the first channel the lowest digit."""
        digits = steps.detach().round().long() + self.levels // 2
        return (digits * self.basis).sum(1)


def kl_to_uniform(logits: Tensor) -> Tensor:
    """KL divergence of categorical `logits` [B, K, ...] from the uniform distribution over K, mean nats a cell."""
    log_q = logits.float().log_softmax(1)
    return (log_q.exp() * (log_q + math.log(logits.shape[1]))).sum(1).mean()
