"""Cosmos' tokenizer of videos, written out in three dimensions with the published names, and its TorchScript archives.

Nothing is reduced to images here: an image is a video of one frame, which is padded in time by copies of it.
"""

from __future__ import annotations

import math
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALL = {"channels": 16, "multipliers": (1, 2, 4), "blocks": 1, "latents": 8}
FULL = {"channels": 128, "multipliers": (2, 4, 4), "blocks": 2, "latents": 16}
SPACE, TIME, PIXEL = (1, 3, 3), (3, 1, 1), (1, 1, 1)
# Of random weights, so that codes follow the colors, and images are not far outside of what is shown
_GAINS = {"encoder.conv_in.0": 10.0, "quant_conv": 3.0, "decoder.conv_out.1": 0.1}


class Conv(nn.Module):
    """A convolution that sees no later frames; `conv3d` is the published name."""

    def __init__(self, before: int, width: int, kernel: tuple[int, ...], stride: tuple[int, ...] = (1, 1, 1)):
        super().__init__()
        self.conv3d = nn.Conv3d(before, width, kernel, stride)
        self.front = kernel[0] - stride[0]
        self.around = kernel[1] // 2 if stride[1] == 1 else 0

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x[:, :, :1]] * self.front + [x], dim=2)
        return self.conv3d(F.pad(x, (self.around,) * 4))


def pair(before: int, width: int) -> nn.Sequential:
    return nn.Sequential(Conv(before, width, SPACE), Conv(width, width, TIME))


class Norm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.GroupNorm(1, width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.norm(frame) for frame in x.unbind(2)], dim=2)


class Block(nn.Module):
    def __init__(self, before: int, width: int):
        super().__init__()
        self.norm1, self.conv1 = Norm(before), pair(before, width)
        self.norm2, self.conv2 = Norm(width), pair(width, width)
        self.nin_shortcut = nn.Identity() if before == width else Conv(before, width, PIXEL)

    def forward(self, x: Tensor) -> Tensor:
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class Attention(nn.Module):
    """Over the cells of each frame, or over the frames of each cell, none of which sees later ones."""

    def __init__(self, width: int, over_time: bool):
        super().__init__()
        self.norm, self.over_time = Norm(width), over_time
        self.q, self.k, self.v, self.proj_out = (Conv(width, width, PIXEL) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (part(normed).permute(0, 2, 3, 4, 1) for part in (self.q, self.k, self.v))  # [B, T, h, w, C]
        if self.over_time:
            scores = torch.einsum("bthwc,bshwc->bhwts", q, k) * x.shape[1] ** -0.5
            weights = scores.masked_fill(torch.ones_like(scores).triu(1) > 0, -math.inf).softmax(-1)
            mixed = torch.einsum("bhwts,bshwc->bcthw", weights, v)
        else:
            scores = torch.einsum("bthwc,btijc->bthwij", q, k) * x.shape[1] ** -0.5
            weights = scores.flatten(-2).softmax(-1).view_as(scores)
            mixed = torch.einsum("bthwij,btijc->bcthw", weights, v)
        return x + self.proj_out(mixed)


class Middle(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.block_1, self.block_2 = Block(width, width), Block(width, width)
        self.attn_1 = nn.Sequential(Attention(width, False), Attention(width, True))

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Downsample(nn.Module):
    """A step in space, in time, in both or in none: the kernels of all are there."""

    def __init__(self, width: int, in_space: bool, in_time: bool):
        super().__init__()
        self.conv1 = Conv(width, width, SPACE, (1, 2, 2))
        self.conv2 = Conv(width, width, TIME, (2, 1, 1))
        self.conv3, self.in_space, self.in_time = Conv(width, width, PIXEL), in_space, in_time

    def forward(self, x: Tensor) -> Tensor:
        if not (self.in_space or self.in_time):
            return x
        if self.in_space:
            x = F.pad(x, (0, 1, 0, 1))
            x = self.conv1(x) + F.avg_pool3d(x, (1, 2, 2))
        if self.in_time:
            x = torch.cat((x[:, :, :1], x), dim=2)
            x = self.conv2(x) + F.avg_pool3d(x, (2, 1, 1))
        return self.conv3(x)


class Upsample(nn.Module):
    def __init__(self, width: int, in_space: bool, in_time: bool):
        super().__init__()
        self.conv1, self.conv2 = Conv(width, width, TIME), Conv(width, width, SPACE)
        self.conv3, self.in_space, self.in_time = Conv(width, width, PIXEL), in_space, in_time

    def forward(self, x: Tensor) -> Tensor:
        if not (self.in_space or self.in_time):
            return x
        if self.in_time:
            if x.shape[2] > 1:
                x = x.repeat_interleave(2, dim=2)[:, :, 1:]
            x = x + self.conv1(x)
        if self.in_space:
            x = x.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
            x = x + self.conv2(x)
        return self.conv3(x)


class Level(nn.Module):
    def __init__(self, before: int, width: int, blocks: int):
        super().__init__()
        self.block = nn.ModuleList([Block(width if i else before, width) for i in range(blocks)])


def bands(x: Tensor) -> Tensor:
    """The 8 kernels [8, 1, 2, 2, 2] of a step of the wavelets: low and high in time, height and width."""
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=x.dtype)
    return torch.einsum("at,bh,cw->abcthw", signs, signs, signs).reshape(8, 1, 2, 2, 2)


class Patches(nn.Module):
    """Haar wavelets, two steps. Of one frame four copies are transformed, and of four frames the last one is kept."""

    def __init__(self, inverse: bool):
        super().__init__()
        self.inverse = inverse
        self.register_buffer("wavelets", torch.full((2,), 0.5**0.5), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.inverse:
            x = x.repeat_interleave(4, dim=2)
        for _ in range(2):
            if self.inverse:
                x = x.unflatten(1, (8, -1)).transpose(1, 2)  # [B, C, 8, T, h, w]
                x = F.conv_transpose3d(x.flatten(0, 1), bands(x), stride=2).unflatten(0, x.shape[:2])[:, :, 0]
            else:
                made = F.conv3d(x.flatten(0, 1)[:, None], bands(x), stride=2) / 8
                x = made.unflatten(0, x.shape[:2]).transpose(1, 2).flatten(1, 2)
        return x[:, :, 3:] if self.inverse else x


class Encoder(nn.Module):
    """`steps`: of how many levels in space, and in time."""

    def __init__(
        self, channels: int, multipliers: Sequence[int], blocks: int, latents: int, steps: tuple[int, int] = (2, 1)
    ):
        super().__init__()
        widths = [channels * multiplier for multiplier in multipliers]
        self.patcher3d, self.conv_in = Patches(False), pair(192, channels)
        self.down = nn.ModuleList(
            [Level(before, width, blocks) for before, width in zip([channels, *widths], widths, strict=False)]
        )
        for number, level in enumerate(self.down[:-1]):
            level.downsample = Downsample(widths[number], number < steps[0], number < steps[1])
        self.mid, self.norm_out, self.conv_out = Middle(widths[-1]), Norm(widths[-1]), pair(widths[-1], latents)

    def forward(self, video: Tensor) -> Tensor:
        x = self.conv_in(self.patcher3d(video))
        for level in self.down:
            for block in level.block:
                x = block(x)
            if hasattr(level, "downsample"):
                x = level.downsample(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(
        self, channels: int, multipliers: Sequence[int], blocks: int, latents: int, steps: tuple[int, int] = (2, 1)
    ):
        super().__init__()
        widths = [channels * multiplier for multiplier in multipliers]
        self.conv_in, self.mid = pair(latents, widths[-1]), Middle(widths[-1])
        self.up = nn.ModuleList(
            [Level(before, width, blocks + 1) for before, width in zip([*widths[1:], widths[-1]], widths, strict=True)]
        )
        for number, place in ((2, 0), (1, 1)):  # the place is that of the order in which they run
            in_time = 0 < place < steps[1] + 1
            in_space = in_time or (place < steps[0] and steps[0] > steps[1])
            self.up[number].upsample = Upsample(widths[number], in_space, in_time)
        self.norm_out, self.conv_out, self.unpatcher3d = Norm(widths[0]), pair(widths[0], 192), Patches(True)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.mid(self.conv_in(latents))
        for level in reversed(self.up):
            for block in level.block:
                x = block(x)
            if hasattr(level, "upsample"):
                x = level.upsample(x)
        return self.unpatcher3d(self.conv_out(F.silu(self.norm_out(x))))


class Quantizer(nn.Module):
    """FSQ, one channel after the other."""

    def __init__(self, levels: Sequence[int], inverse: bool):
        super().__init__()
        self.steps, self.inverse = list(levels), inverse
        self.register_buffer("_levels", torch.tensor(levels, dtype=torch.int32), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Latents [B, C, T, h, w] to codes [B, T, h, w], or these to vectors."""
        if self.inverse:
            digits = []
            for level in self.steps:
                digits.append((x % level - level // 2) / (level // 2))
                x = torch.div(x, level, rounding_mode="floor")
            return torch.stack(digits, dim=1)
        codes, unit = torch.zeros_like(x[:, 0]).long(), 1
        for channel, level in enumerate(self.steps):
            half, offset = (level - 1) * 1.001 / 2, 0.0 if level % 2 else 0.5
            bounded = torch.tanh(x[:, channel] + math.atanh(offset / half)) * half - offset
            codes = codes + unit * (bounded.round().long() + level // 2)
            unit *= level
        return codes


def parts(
    levels: Sequence[int] = (8, 8, 8, 5, 5, 5), sizes: dict[str, object] | None = None, steps: tuple[int, int] = (2, 1)
) -> tuple[nn.Sequential, nn.Sequential]:
    """What encodes a video to codes, and what decodes them, with random weights; `steps` as of the encoder."""
    torch.manual_seed(0)
    shape: dict[str, object] = {**(SMALL if sizes is None else sizes), "steps": steps}
    latents = int(str(shape["latents"]))
    encoder: OrderedDict[str, nn.Module] = OrderedDict(encoder=Encoder(**shape))  # type: ignore[arg-type]
    encoder["quant_conv"], encoder["quantizer"] = Conv(latents, len(levels), PIXEL), Quantizer(levels, False)
    decoder: OrderedDict[str, nn.Module] = OrderedDict(inv_quant=Quantizer(levels, True))
    decoder["post_quant_conv"], decoder["decoder"] = Conv(len(levels), latents, PIXEL), Decoder(**shape)  # type: ignore[arg-type]
    made = nn.Sequential(encoder).eval(), nn.Sequential(decoder).eval()
    with torch.no_grad():
        for network in made:
            for name, value in network.named_parameters():
                if value.ndim == 1:
                    value.add_(0.3 * torch.randn_like(value))
                else:
                    value.mul_(_GAINS.get(name.partition(".conv3d")[0], 1.7))
        if sizes is None:  # latents around 0, so that they reach many codes
            encoder, last = made[0].encoder, made[0].quant_conv
            colors = F.interpolate(2 * torch.rand(4, 3, 4, 4) - 1, scale_factor=16.0)
            last.conv3d.bias.sub_(last(encoder(colors[:, :, None])).mean((0, 2, 3, 4)))
    return made


def write(
    both: tuple[nn.Sequential, nn.Sequential],
    folder: Path,
    cells: int = 4,
    names: tuple[str, ...] = ("encoder", "decoder"),
) -> Path:
    """The archives, or one of them, as torch.jit.trace and torch.jit.save make them."""
    folder.mkdir(parents=True, exist_ok=True)
    video, codes = torch.zeros(1, 3, 1, 16 * cells, 16 * cells), torch.zeros(1, 1, cells, cells, dtype=torch.int64)
    for name, network, sample in (("encoder", both[0], video), ("decoder", both[1], codes)):
        if name not in names:
            continue
        with warnings.catch_warnings():  # that other sizes of images might not go through, and the like
            warnings.simplefilter("ignore")
            torch.jit.trace(network, sample, check_trace=False).save(str(folder / f"{name}.jit"))
    return folder
