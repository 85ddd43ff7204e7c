"""The U-Net of ADM and GLIDE, which denoises images given a vector and perhaps a sequence. Knows no diffusion.

Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis" (arXiv 2105.05233), section 3 and appendix A;
Nichol et al. 2021, "GLIDE" (arXiv 2112.10741), section 4. It is also the shape of Karlo's and Kandinsky's.

Shapes: B images, C channels, H W pixels, E width of the vector, S context tokens.
"""

from __future__ import annotations

from dataclasses import field
from typing import TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dalle.config import check_total, config
from dalle.config.ranges import Decay, NonNegativeInt, Size
from dalle.kernels.attention import attend
from dalle.kernels.conv import Conv3x3, image_layout
from dalle.kernels.group_norm import Norm

_EPS = 1e-5
_Linear = TypeVar("_Linear", bound=nn.Module)


@config
class UNetConfig:
    """Shape of a U-Net. The defaults are for small images."""

    channels: Size = 64
    """Channels of the first level."""
    channel_multipliers: list[Size] = field(default_factory=lambda: [1, 2, 3])
    """Channels of each level over `channels`; each level but the first halves the resolution."""
    layers: Size = 1
    """Residual blocks of a level on the way down; on the way up there is one more."""
    attention_levels: list[NonNegativeInt] = field(default_factory=lambda: [2])
    """Levels, 0 the finest, whose blocks are each followed by attention to all pixels and to the context. The middle
    attends if any level does."""
    head_channels: Size = 64
    """Channels of an attention head; must divide those of the levels that attend."""
    scale_shift: bool = True
    """The vector scales and shifts what is normalized (adaptive group normalization); false: it is added before."""
    dropout: Decay = 0.0
    """Share of activations dropped inside residual blocks in training, from 0 to below 1."""
    checkpoint_activations: bool = False
    """Recompute each residual block in the backward pass: less memory, about a third more time."""

    def __post_init__(self) -> None:
        if not self.channel_multipliers:
            raise ValueError("channel_multipliers is empty; give one for each level, for example [1, 2, 3]")
        levels = len(self.channel_multipliers)
        check_total(
            levels * self.layers * (18 * max(self.widths) ** 2 + 2**14),  # two 3x3 convolutions
            f"channels {self.channels}, channel_multipliers {self.channel_multipliers}, layers {self.layers}",
        )
        for level in self.attention_levels:
            if level >= levels:
                raise ValueError(f"attention_levels has {level}; there are levels 0 to {levels - 1}")
        # The middle stands at the coarsest level
        attending = [*self.attention_levels, levels - 1] if self.attention_levels else []
        for level in attending:
            if self.widths[level] % self.head_channels:
                raise ValueError(
                    f"head_channels is {self.head_channels}; it must divide the {self.widths[level]} channels of "
                    f"level {level}, which attends"
                )

    @property
    def widths(self) -> list[int]:
        """Channels of each level, the finest first."""
        return [self.channels * multiplier for multiplier in self.channel_multipliers]

    @property
    def factor(self) -> int:
        """Height and width of images must be multiples of it."""
        return 2 ** (len(self.channel_multipliers) - 1)

    @property
    def vector_width(self) -> int:
        """Width E of the vector."""
        return 4 * self.channels


class UNet(nn.Module):
    """Residual blocks down to the coarsest level and up again, with a skip connection from each block of the way down.

    Args:
        config: the shape.
        channels_in: channels of what it reads.
        channels_out: channels of what it gives.
        context_width: width of the tokens that its attention looks at beside the pixels; None: there are none.
    """

    def __init__(self, config: UNetConfig, channels_in: int, channels_out: int, context_width: int | None = None):
        super().__init__()
        widths, last = config.widths, len(config.widths) - 1
        self.conv_in = Conv3x3(channels_in, config.channels)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()

        def stage(before: int, width: int, attends: bool) -> Stage:
            return Stage(config, before, width, context_width, attends)

        before, skips = config.channels, [config.channels]  # `skips`: channels, as a stack
        for level, width in enumerate(widths):
            for _ in range(config.layers):
                self.down.append(stage(before, width, level in config.attention_levels))
                before = width
                skips.append(width)
            if level < last:
                self.down.append(ResidualBlock(config, width, width, "down"))
                skips.append(width)
        self.middle = stage(widths[-1], widths[-1], bool(config.attention_levels))
        self.middle_out = ResidualBlock(config, widths[-1], widths[-1])
        for level in reversed(range(len(widths))):
            for _ in range(config.layers + 1):  # one more, for the skip of the downsampling or the input
                self.up.append(stage(before + skips.pop(), widths[level], level in config.attention_levels))
                before = widths[level]
            if level:
                self.up.append(ResidualBlock(config, before, before, "up"))
        self.norm_out = Norm(before, _EPS)
        # Untrained it predicts zero, the mean of noise
        self.conv_out = _zeroed(Conv3x3(before, channels_out))

    def forward(self, x: Tensor, vector: Tensor, context: Tensor | None = None, real: Tensor | None = None) -> Tensor:
        """Denoise.

        Args:
            x: [B, channels_in, H, W], H and W multiples of `config.factor`.
            vector: [B, E], of the step and whatever else is the same for all pixels.
            context: [B, S, context_width], where there is a context.
            real: bool [B, S]: the tokens of the context that count; None: all.

        Returns:
            [B, channels_out, H, W].
        """
        vector = F.silu(vector)  # as the first thing that each block does with it
        x = self.conv_in(image_layout(x))
        skips = [x]
        for part in self.down:
            x = part(x, vector, context, real)
            skips.append(x)
        # The middle: the coarsest level once more, without skips
        x = self.middle_out(self.middle(x, vector, context, real), vector)
        for part in self.up:
            # The skip behind each downsampling goes to the last stage of the level that it leads to
            if isinstance(part, Stage):
                x = torch.cat((x, skips.pop()), dim=1)
            x = part(x, vector, context, real)
        return self.conv_out(self.norm_out(x, swish=True))


class Stage(nn.Module):
    """A residual block, perhaps with attention behind it."""

    def __init__(self, config: UNetConfig, before: int, width: int, context_width: int | None, attends: bool):
        super().__init__()
        self.block = ResidualBlock(config, before, width)
        self.attention = AttentionBlock(width, config.head_channels, context_width) if attends else None

    def forward(self, x: Tensor, vector: Tensor, context: Tensor | None, real: Tensor | None) -> Tensor:
        """[B, before, h, w], conditioned on vectors [B, vector_width] and a context, to [B, width, h', w']."""
        x = self.block(x, vector)
        return x if self.attention is None else self.attention(x, context, real)


class ResidualBlock(nn.Module):
    """x + conv(swish(norm(conv(swish(norm(x)))))), conditioned on a vector at its second norm.

    A block that resamples does so in both branches: means of 2x2, or nearest neighbors.
    """

    def __init__(self, config: UNetConfig, before: int, width: int, resample: str | None = None):
        super().__init__()
        self.resample, self.scale_shift = resample, config.scale_shift
        self.checkpointed = config.checkpoint_activations
        self.norm_in = Norm(before, _EPS)
        self.conv_in = Conv3x3(before, width)
        self.vector = nn.Linear(config.vector_width, 2 * width if config.scale_shift else width)
        self.norm_out = Norm(width, _EPS)
        self.dropout = nn.Dropout(config.dropout)
        self.conv_out = _zeroed(Conv3x3(width, width))  # a block begins as the identity
        self.shortcut = nn.Identity() if before == width else nn.Conv2d(before, width, 1)

    def forward(self, x: Tensor, vector: Tensor, context: Tensor | None = None, real: Tensor | None = None) -> Tensor:
        # Called like a `Stage`
        """[B, before, h, w] and vectors [B, vector_width] to [B, width, h', w']; context and its mask are not used."""
        if self.checkpointed and self.training:
            return checkpoint(self._run, x, vector, use_reentrant=False)
        return self._run(x, vector)

    def _run(self, x: Tensor, vector: Tensor) -> Tensor:
        hidden = self.conv_in(self._resampled(self.norm_in(x, swish=True)))
        condition = self.vector(vector)[:, :, None, None].to(hidden.dtype)  # [B, width or 2 width, 1, 1]
        if self.scale_shift:
            scale, shift = condition.chunk(2, dim=1)  # AdaGN (Dhariwal and Nichol 2021, arXiv 2105.05233, section 3)
            # 1 + scale: a vector of zeros leaves the norm as it is
            hidden = F.silu(torch.addcmul(shift, self.norm_out(hidden), 1 + scale))
        else:
            hidden = self.norm_out(hidden + condition, swish=True)
        return self.shortcut(self._resampled(x)) + self.conv_out(self.dropout(hidden))

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2.0, mode="nearest") if self.resample == "up" else x


class AttentionBlock(nn.Module):
    """Pixels look at context tokens and at each other, in one softmax; what they see is added to them."""

    def __init__(self, width: int, head_channels: int, context_width: int | None):
        super().__init__()
        self.heads = width // head_channels
        self.norm = Norm(width, _EPS)
        self.qkv = nn.Linear(width, 3 * width)
        self.context = None if context_width is None else nn.Linear(context_width, 2 * width)
        self.out = _zeroed(nn.Linear(width, width))

    def forward(self, x: Tensor, context: Tensor | None, real: Tensor | None) -> Tensor:
        """[B, width, h, w], attending to itself and to the context tokens that are `real`, to the same shape."""
        height, pixels = x.shape[2], x.shape[2] * x.shape[3]
        tokens = rearrange(self.norm(x), "b c h w -> b (h w) c")
        # Shaped [3, B, heads, H W, D]
        q, k, v = rearrange(self.qkv(tokens), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        mask = None
        if self.context is not None and context is not None:
            also = self.context(context.to(tokens.dtype))
            also_k, also_v = rearrange(also, "b n (two h d) -> two b h n d", two=2, h=self.heads)
            # The context in front, as the published code has it; the mask below is padded to match
            k, v = torch.cat((also_k, k), dim=2), torch.cat((also_v, v), dim=2)
            if real is not None:
                mask = F.pad(real, (0, pixels), value=True)[:, None, None]  # [B, 1, 1, S + H W]
        mixed = self.out(rearrange(attend(q, k, v, mask), "b h n d -> b n (h d)"))
        return x + rearrange(mixed, "b (h w) c -> b c h w", h=height)


def _zeroed(module: _Linear) -> _Linear:
    """A linear map that gives zeros at first."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
