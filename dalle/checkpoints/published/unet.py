"""U-Nets of diffusers' UNet2DConditionModel and UNet2DModel, in the shape that Karlo and Kandinsky have, as ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from dalle.checkpoints.lazy_tensor import LazyTensor
from dalle.checkpoints.published.state import derived
from dalle.models.unet import UNetConfig

_PLAIN, _ATTENDING = "Resnet", "SimpleCrossAttn"
_RESIDUAL = {
    "norm1": "norm_in",
    "conv1": "conv_in",
    "time_emb_proj": "vector",
    "norm2": "norm_out",
    "conv2": "conv_out",
    "conv_shortcut": "shortcut",
}
_OUTER = {
    "conv_in": "conv_in",
    "conv_norm_out": "norm_out",
    "conv_out": "conv_out",
}


def unet_config(config: Mapping[str, Any]) -> UNetConfig:
    """Our config of a `config.json`.

    Raises:
        ValueError: it is of a U-Net with other blocks.
    """
    down, widths = config.get("down_block_types") or [], config.get("block_out_channels") or []
    up = config.get("up_block_types") or []
    kinds = [_kind(name, "Down") for name in down]
    # Up is down, backwards
    if not widths or len(kinds) != len(widths) or [_kind(name, "Up") for name in up] != kinds[::-1]:
        raise ValueError(f"its blocks are {down} and {up}, of {widths} channels: mirrored ones as Karlo's are read")
    if any(width % widths[0] for width in widths):
        raise ValueError(f"its block_out_channels are {widths}: multiples of the first are read")
    # What diffusers calls attention_head_dim is the width of a head in these blocks
    return UNetConfig(
        channels=widths[0],
        channel_multipliers=[width // widths[0] for width in widths],
        layers=config.get("layers_per_block", 2),
        attention_levels=[level for level, kind in enumerate(kinds) if kind == _ATTENDING],
        # 0 would divide the channels
        head_channels=config.get("attention_head_dim") or 1 if _ATTENDING in kinds else 1,
        scale_shift=config.get("resnet_time_scale_shift", "default") == "scale_shift",
    )


def _kind(name: object, way: str) -> str:
    for kind, full in ((_PLAIN, f"Resnet{way}sampleBlock2D"), (_ATTENDING, f"SimpleCrossAttn{way}Block2D")):
        if name == full:
            return kind
    raise ValueError(f"it has blocks of kind {name!r}; ResnetDownsampleBlock2D, SimpleCrossAttnDownBlock2D are read")


def unet_tensors(
    config: UNetConfig, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor | LazyTensor], dict[str, str]]:
    """Tensors of the U-Net under our names, and what each is called there, present or not; others are left alone."""
    names = dict(_modules(config))
    found: dict[str, Tensor | LazyTensor] = {}
    published: dict[str, str] = {}
    for theirs, ours in names.items():
        for kind in ("weight", "bias"):
            published[f"{ours}.{kind}"] = f"{theirs}.{kind}"
            if f"{theirs}.{kind}" in tensors:
                found[f"{ours}.{kind}"] = tensors[f"{theirs}.{kind}"]
    for theirs, ours in _attentions(config):
        for parts, mine in ((("to_q", "to_k", "to_v"), "qkv"), (("add_k_proj", "add_v_proj"), "context")):
            for kind in ("weight", "bias"):
                sources = [f"{theirs}.{part}.{kind}" for part in parts]
                published[f"{ours}.{mine}.{kind}"] = " and ".join(sources)
                if all(source in tensors for source in sources):
                    found[f"{ours}.{mine}.{kind}"] = _joined([tensors[source] for source in sources])
    return found, published


def _joined(parts: list[Tensor]) -> LazyTensor:
    size = torch.Size((sum(len(part) for part in parts), *parts[0].shape[1:]))
    return derived(parts, size, lambda: torch.cat(parts))


def _places(config: UNetConfig) -> Iterator[tuple[str, str, str, bool]]:
    """Of each block: where its residual part is published, where its attention is, ours, whether it resamples."""
    last, number = len(config.widths) - 1, 0
    for level in range(last + 1):
        for block in range(config.layers):
            front = f"down_blocks.{level}"
            yield f"{front}.resnets.{block}", f"{front}.attentions.{block}", f"down.{number}", False
            number += 1
        if level < last:
            yield f"down_blocks.{level}.downsamplers.0", "", f"down.{number}", True
            number += 1
    yield "mid_block.resnets.0", "mid_block.attentions.0", "middle", False
    # True: no attention follows, as where it resamples
    yield "mid_block.resnets.1", "", "middle_out", True
    number = 0
    # up_blocks.0 is the coarsest, as the first of our `up`
    for level in range(last + 1):
        for block in range(config.layers + 1):  # one more than on the way down, for the skip of each
            front = f"up_blocks.{level}"
            yield f"{front}.resnets.{block}", f"{front}.attentions.{block}", f"up.{number}", False
            number += 1
        if level < last:
            yield f"up_blocks.{level}.upsamplers.0", "", f"up.{number}", True
            number += 1


def _modules(config: UNetConfig) -> Iterator[tuple[str, str]]:
    yield from _OUTER.items()
    for residual, attention, ours, alone in _places(config):
        block = ours if alone else f"{ours}.block"
        for theirs, mine in _RESIDUAL.items():
            yield f"{residual}.{theirs}", f"{block}.{mine}"
        if attention:
            yield f"{attention}.group_norm", f"{ours}.attention.norm"
            yield f"{attention}.to_out.0", f"{ours}.attention.out"


def _attentions(config: UNetConfig) -> Iterator[tuple[str, str]]:
    for _, attention, ours, _ in _places(config):
        if attention:
            yield attention, f"{ours}.attention"
