"""Convolutional autoencoders under the names of taming-transformers, slowly: random weights, encoder, decoder.

With `modulated`, the decoder is MoVQ's, whose norms are scaled and shifted by the quantized vectors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


def random_state(
    widths: list[int],
    blocks: int,
    attended: tuple[int, ...],
    latents: int,
    codes: int,
    code_channels: int,
    modulated: bool = False,
    device: str = "cpu",
) -> State:
    """Weights by their published names, not trivial anywhere."""
    state: State = {}
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int, mean: float = 0.0, std: float = 1.0) -> Tensor:
        if device != "cpu":
            return torch.empty(shape, device=device)
        return mean + std * torch.randn(shape, generator=generator)

    def conv(name: str, before: int, width: int, side: int) -> None:
        state[f"{name}.weight"] = random(width, before, side, side, std=1.2 * (before * side**2) ** -0.5)
        state[f"{name}.bias"] = random(width, std=0.2)

    def norm(name: str, width: int) -> None:
        inner = f"{name}.norm_layer" if modulated and name.startswith("decoder") else name
        state[f"{inner}.weight"], state[f"{inner}.bias"] = random(width, mean=1, std=0.3), random(width, std=0.3)
        if inner != name:
            conv(f"{name}.conv_y", code_channels, width, 1)
            conv(f"{name}.conv_b", code_channels, width, 1)

    def residual(name: str, before: int, width: int) -> None:
        norm(f"{name}.norm1", before)
        conv(f"{name}.conv1", before, width, 3)
        norm(f"{name}.norm2", width)
        conv(f"{name}.conv2", width, width, 3)
        if before != width:
            conv(f"{name}.nin_shortcut", before, width, 1)

    def attention(name: str, width: int) -> None:
        norm(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.{part}", width, width, 1)

    def middle(side: str) -> None:
        residual(f"{side}.mid.block_1", widths[-1], widths[-1])
        attention(f"{side}.mid.attn_1", widths[-1])
        residual(f"{side}.mid.block_2", widths[-1], widths[-1])

    conv("encoder.conv_in", 3, widths[0], 3)
    before, last = widths[0], len(widths) - 1
    for level, width in enumerate(widths):
        for block in range(blocks):
            residual(f"encoder.down.{level}.block.{block}", before, width)
            before = width
            if level in attended:
                attention(f"encoder.down.{level}.attn.{block}", width)
        if level < last:
            conv(f"encoder.down.{level}.downsample.conv", width, width, 3)
    middle("encoder")
    norm("encoder.norm_out", widths[-1])
    conv("encoder.conv_out", widths[-1], latents, 3)
    conv("decoder.conv_in", latents, widths[-1], 3)
    middle("decoder")
    for level in range(last, -1, -1):
        for block in range(blocks + 1):
            residual(f"decoder.up.{level}.block.{block}", before, widths[level])
            before = widths[level]
            if level in attended:
                attention(f"decoder.up.{level}.attn.{block}", before)
        if level:
            conv(f"decoder.up.{level}.upsample.conv", before, before, 3)
    norm("decoder.norm_out", widths[0])
    conv("decoder.conv_out", widths[0], 3, 3)
    conv("quant_conv", latents, code_channels, 1)
    conv("post_quant_conv", code_channels, latents, 1)
    state["quantize.embedding.weight"] = random(codes, code_channels)
    return state


def encode(state: State, images: Tensor) -> Tensor:
    """Images in [0, 1] to what is quantized."""
    x, level = _conv(state, "encoder.conv_in", 2 * images - 1), 0
    while f"encoder.down.{level}.block.0.conv1.weight" in state:
        x = _level(state, f"encoder.down.{level}", x, None)
        if f"encoder.down.{level}.downsample.conv.weight" in state:
            x = _conv(state, f"encoder.down.{level}.downsample.conv", F.pad(x, (0, 1, 0, 1)), stride=2, padding=0)
        level += 1
    x = _end(state, "encoder", _middle(state, "encoder", x, None), None)
    return _conv(state, "quant_conv", x)


def decode(state: State, codes: Tensor) -> Tensor:
    """Codes [B, h, w] to images, nominally in [0, 1]."""
    quantized = state["quantize.embedding.weight"][codes].permute(0, 3, 1, 2)
    x = _conv(state, "decoder.conv_in", _conv(state, "post_quant_conv", quantized))
    x = _middle(state, "decoder", x, quantized)
    level = max(int(name.split(".")[2]) for name in state if name.startswith("decoder.up."))
    for number in range(level, -1, -1):
        x = _level(state, f"decoder.up.{number}", x, quantized)
        if number:
            x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            x = _conv(state, f"decoder.up.{number}.upsample.conv", x)
    return (_end(state, "decoder", x, quantized) + 1) / 2


def _conv(state: State, name: str, x: Tensor, stride: int = 1, padding: int | None = None) -> Tensor:
    weight = state[f"{name}.weight"]
    edge = weight.shape[-1] // 2 if padding is None else padding
    return F.conv2d(x, weight, state[f"{name}.bias"], stride, edge)


def _norm(state: State, name: str, x: Tensor, quantized: Tensor | None) -> Tensor:
    if f"{name}.norm_layer.weight" not in state:
        return F.group_norm(x, 32, state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)
    assert quantized is not None
    normed = F.group_norm(x, 32, state[f"{name}.norm_layer.weight"], state[f"{name}.norm_layer.bias"], 1e-6)
    near = F.interpolate(quantized, x.shape[-2:], mode="nearest")
    return normed * _conv(state, f"{name}.conv_y", near) + _conv(state, f"{name}.conv_b", near)


def _residual(state: State, name: str, x: Tensor, quantized: Tensor | None) -> Tensor:
    hidden = x
    for number in (1, 2):
        hidden = _norm(state, f"{name}.norm{number}", hidden, quantized)
        hidden = _conv(state, f"{name}.conv{number}", hidden * hidden.sigmoid())
    return hidden + (_conv(state, f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in state else x)


def _attention(state: State, name: str, x: Tensor, quantized: Tensor | None) -> Tensor:
    normed = _norm(state, f"{name}.norm", x, quantized)
    q, k, v = (_conv(state, f"{name}.{part}", normed).flatten(2) for part in "qkv")  # [B, C, h w]
    weights = (q.transpose(1, 2) @ k * q.shape[1] ** -0.5).softmax(-1)
    mixed = (v @ weights.transpose(1, 2)).view_as(x)
    return x + _conv(state, f"{name}.proj_out", mixed)


def _level(state: State, name: str, x: Tensor, quantized: Tensor | None) -> Tensor:
    block = 0
    while f"{name}.block.{block}.conv1.weight" in state:
        x = _residual(state, f"{name}.block.{block}", x, quantized)
        if f"{name}.attn.{block}.q.weight" in state:
            x = _attention(state, f"{name}.attn.{block}", x, quantized)
        block += 1
    return x


def _middle(state: State, side: str, x: Tensor, quantized: Tensor | None) -> Tensor:
    x = _residual(state, f"{side}.mid.block_1", x, quantized)
    x = _attention(state, f"{side}.mid.attn_1", x, quantized)
    return _residual(state, f"{side}.mid.block_2", x, quantized)


def _end(state: State, side: str, x: Tensor, quantized: Tensor | None) -> Tensor:
    x = _norm(state, f"{side}.norm_out", x, quantized)
    return _conv(state, f"{side}.conv_out", x * x.sigmoid())
