"""Quantizers, from a grid of latents to a grid of codes and back: their interface, Gumbel-softmax and FSQ.

Shapes: B images, h x w cells, C channels of a code, K codes.
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
from dalle.config.ranges import Range, Size
from dalle.image_tokenizers.base import Reduce


@config
class GumbelConfig:
    """Gumbel-softmax quantizer, like taming's GumbelQuantize."""

    kind: Literal["gumbel"] = "gumbel"
    """Gumbel-softmax relaxation."""
    codebook_size: Size = 1024
    """Number of codes."""
    code_channels: Size = 64
    """Channels of a codebook vector."""
    straight_through: bool = False
    """Decode the sampled code's exact vector, with the gradient of the relaxation."""


@config
class FSQConfig:
    """Finite scalar quantization (arXiv 2309.15505)."""

    kind: Literal["fsq"] = "fsq"
    """Finite scalar quantization: no codebook to learn, so no dead codes."""
    levels: list[Annotated[int, Range(2, ceiling=10**12)]] = field(default_factory=lambda: [8, 5, 5, 5])
    """Quantization levels per channel; their product is the number of codes."""

    def __post_init__(self) -> None:
        if not self.levels:
            raise ValueError("levels is empty; give at least one channel, and at least 2 levels for each")
        check_total(math.prod(self.levels), f"levels {self.levels}")


class Quantized(NamedTuple):
    """The result of a quantizer's forward pass."""

    latents: Tensor
    """Float32 [B, C, h, w], the decoder's input."""
    codes: Tensor
    """Int64 [B, h, w]."""
    losses: dict[str, Tensor]
    """The quantizer's losses by name, scalars."""


class Quantizer(nn.Module, ABC):
    """Maps latents of `code_channels` channels to codes in [0, codebook_size), and codes to such latents."""

    codebook_size: int
    code_channels: int

    @abstractmethod
    def forward(self, z: Tensor, temperature: float) -> Quantized:
        """Quantize z [B, C, h, w] differentiably; the temperature, above 0, is that of a Gumbel-softmax."""

    @abstractmethod
    def encode(self, z: Tensor) -> Tensor:
        """Quantize z [B, C, h, w] to codes, int64 [B, h, w], without noise."""

    @abstractmethod
    def lookup(self, codes: Tensor) -> Tensor:
        """The codebook vectors [B, C, h, w] of codes [B, h, w]."""

    def on_step_end(self, reduce: Reduce | None = None) -> None:
        """Apply the statistics gathered since the last step; most quantizers gather none."""

    def reset_statistics(self) -> None:
        """Discard the gathered statistics."""


class GumbelQuantizer(Quantizer):
    """Relaxed one-hot codes (taming's GumbelQuantize); `encode` takes the argmax of the logits, without noise.

    The loss "kl" is the KL divergence of the code distribution from the uniform one, in nats per code.
    """

    def __init__(self, config: GumbelConfig):
        super().__init__()
        self.config = config
        self.codebook_size, self.code_channels = config.codebook_size, config.code_channels
        self.proj = nn.Conv2d(config.code_channels, config.codebook_size, 1)
        self.embed = nn.Embedding(config.codebook_size, config.code_channels)
        nn.init.uniform_(self.embed.weight, -1 / config.codebook_size, 1 / config.codebook_size)

    def forward(self, z: Tensor, temperature: float) -> Quantized:
        """See `Quantizer.forward`."""
        logits = self._logits(z)
        # `hard`: one-hot forward, the relaxation's gradient
        relaxed = F.gumbel_softmax(logits, temperature, hard=self.config.straight_through, dim=1)
        with torch.autocast(z.device.type, enabled=False):
            # In float32, as it sums over all codes
            latents = torch.einsum("bkhw,kc->bchw", relaxed, self.embed.weight.float())
        return Quantized(latents, relaxed.argmax(1), {"kl": kl_to_uniform(logits)})

    def encode(self, z: Tensor) -> Tensor:
        """See `Quantizer.encode`."""
        return self._logits(z).argmax(1)

    def lookup(self, codes: Tensor) -> Tensor:
        """See `Quantizer.lookup`."""
        return rearrange(self.embed(codes), "b h w c -> b c h w")

    def _logits(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            return self.proj(z.to(self.proj.weight.dtype)).float()


class FSQQuantizer(Quantizer):
    """Each channel is squashed and rounded to one of a few levels; the code is the mixed-radix number of the levels.

    Section 3 and the listing in appendix A.1 of arXiv 2309.15505. Latents are in [-1, 1]. There are no losses.
    """

    levels: Tensor
    basis: Tensor

    def __init__(self, config: FSQConfig):
        super().__init__()
        self.codebook_size, self.code_channels = math.prod(config.levels), len(config.levels)
        # Mixed radix: channel i counts in units of the product of the levels of the channels before it
        basis = [math.prod(config.levels[:channel]) for channel in range(len(config.levels))]
        # Shaped [C, 1, 1], to broadcast over cells
        self.register_buffer("levels", torch.tensor(config.levels)[:, None, None], persistent=False)
        self.register_buffer("basis", torch.tensor(basis)[:, None, None], persistent=False)

    def forward(self, z: Tensor, temperature: float) -> Quantized:
        """See `Quantizer.forward`; the gradient passes straight through the rounding."""
        bounded = self.bound(z)
        # Straight-through estimator: rounding in the forward pass, identity in the backward pass
        steps = bounded + (bounded.round() - bounded).detach()
        return Quantized(steps / (self.levels // 2), self._number(steps), {})  # to [-1, 1]

    def encode(self, z: Tensor) -> Tensor:
        """See `Quantizer.encode`."""
        return self._number(self.bound(z).round())

    def lookup(self, codes: Tensor) -> Tensor:
        """See `Quantizer.lookup`."""
        digits = codes[:, None] // self.basis % self.levels  # [B, C, h, w]
        half = self.levels // 2
        return (digits - half).float() / half  # the middle level is 0

    def bound(self, z: Tensor, margin: float = 1e-3) -> Tensor:
        """Squash each channel of z [B, C, h, w] so that rounding it gives exactly its number of levels.

        An even number of levels is offset by half a level; the shift inside the tanh compensates, so 0 stays near 0.
        """
        half = (self.levels - 1) * (1 - margin) / 2  # the margin keeps tanh's ends from rounding to one level more
        offset = 0.5 * (self.levels % 2 == 0)
        return (z.float() + (offset / half).tan()).tanh() * half - offset  # the paper's listing has tan here

    def _number(self, steps: Tensor) -> Tensor:
        """Mixed-radix number [B, h, w] of rounded steps [B, C, h, w], the first channel the lowest digit."""
        digits = steps.detach().round().long() + self.levels // 2  # from 0 up
        return (digits * self.basis).sum(1)


def kl_to_uniform(logits: Tensor) -> Tensor:
    """Mean KL divergence of categorical `logits` [B, K, ...] from the uniform distribution, in nats per cell."""
    log_q = logits.float().log_softmax(1)
    # sum q log(q / (1 / K)) = sum q (log q + log K)
    return (log_q.exp() * (log_q + math.log(logits.shape[1]))).sum(1).mean()
