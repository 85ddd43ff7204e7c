"""Kandinsky 2.2's decoder (kandinsky-community/kandinsky-2-2-decoder) in diffusers' folders: its U-Net and its MoVQ.

Version 2.1 reads captions by XLM-R too, and is refused. Letters: C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dalle.checkpoints.lazy_tensor import LazyTensor
from dalle.checkpoints.published.files import read_json, read_state
from dalle.checkpoints.published.state import Published, concat_lazy, derived, shape
from dalle.checkpoints.published.unet import unet_config, unet_tensors
from dalle.models.latent_decoder import LatentDecoderConfig
from dalle.models.movq import MoVQConfig

FAMILY, LICENSE = "Kandinsky 2.2", "Apache-2.0 (huggingface.co/kandinsky-community)"
_CONDITION = {
    "time_embedding.linear_1": "time.up",
    "time_embedding.linear_2": "time.down",
    "add_embedding.image_proj": "image_to_vector",
    "add_embedding.image_norm": "vector_norm",
    "encoder_hid_proj.image_embeds": "image_to_tokens",
    "encoder_hid_proj.norm": "tokens_norm",
}
_RESIDUAL = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2"}
# How diffusers named the parts of attention before it had one class for all
_BEFORE = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def read_latent_decoder(folder: Path) -> Published:
    """The U-Net in a folder with `config.json` and its weights.

    Raises:
        ValueError: a file is missing or damaged, or it is of another architecture or version.
    """
    settings, stored = read_json(folder / "config.json"), read_state(folder)
    kinds = settings.get("addition_embed_type"), settings.get("encoder_hid_dim_type")
    if kinds != ("image", "image_proj"):
        raise ValueError(
            f"{folder} is conditioned by {kinds[0]} and {kinds[1]}, not by an image alone: Kandinsky 2.1 and nets "
            "with hints are not supported, give kandinsky-2-2-decoder"
        )
    # Latents in, noise out, and the variance behind it. For inpainting 9 go in: latents, those of what is kept, mask
    channels = settings.get("in_channels", 4)
    if channels != shape(stored, "conv_out.weight", 4)[0] and 2 * channels != shape(stored, "conv_out.weight", 4)[0]:
        raise ValueError(
            f"{folder} reads {channels} channels: the net for inpainting is not supported, any other does it"
        )
    shapes = unet_config(settings)
    found, names = unet_tensors(shapes, stored)
    tensors: dict[str, Tensor | LazyTensor] = {f"unet.{ours}": tensor for ours, tensor in found.items()}
    published = {f"unet.{ours}": theirs for ours, theirs in names.items()}
    _take(_CONDITION.items(), stored, tensors, published)
    rows, dim = shape(stored, "encoder_hid_proj.image_embeds.weight", 2)
    context = shape(stored, "encoder_hid_proj.norm.weight", 1)[0]
    config = LatentDecoderConfig(
        image_size=settings.get("sample_size") or 64,
        channels=channels,
        unet=shapes,
        embed_dim=dim,
        context_width=context,
        image_tokens=rows // context,  # one row of the projection gives all tokens
        learned_variance=shape(stored, "conv_out.weight", 4)[0] == 2 * channels,
    )
    return _published(folder, config, stored, tensors, published)


def read_movq(folder: Path) -> Published:
    """The autoencoder in a folder with `config.json` and its weights; its codebook is left out, as none is used.

    Raises:
        ValueError: a file is missing or damaged, or it is of another architecture.
    """
    settings, stored = read_json(folder / "config.json"), read_state(folder)
    # diffusers renames these too when it loads older files
    for old, new in _BEFORE.items():
        stored = {name.replace(f".{old}.", f".{new}."): tensor for name, tensor in stored.items()}
    if settings.get("norm_type") != "spatial":
        raise ValueError(f"{folder / 'config.json'} says norm_type: {settings.get('norm_type')!r}, expected 'spatial'")
    widths, latents = settings.get("block_out_channels") or [0], settings.get("latent_channels", 3)
    if not widths[0] or any(width % widths[0] for width in widths) or settings.get("vq_embed_dim", latents) != latents:
        raise ValueError(f"{folder / 'config.json'} has other channels than MoVQ of Kandinsky: {widths}, {latents}")
    # Attention at the coarsest level only
    kinds = ["DownEncoderBlock2D"] * (len(widths) - 1) + ["AttnDownEncoderBlock2D"]
    if settings.get("down_block_types") != kinds:
        raise ValueError(f"{folder / 'config.json'} has blocks {settings.get('down_block_types')}, expected {kinds}")
    config = MoVQConfig(
        channels=widths[0],
        channel_multipliers=[width // widths[0] for width in widths],
        blocks=settings.get("layers_per_block", 1),
        latent_channels=latents,
    )
    tensors: dict[str, Tensor | LazyTensor] = {}
    published: dict[str, str] = {}
    _take(_movq_modules(config), stored, tensors, published)
    for theirs, ours in _encoder_attentions(config):
        for part, mine in zip(("to_q", "to_k", "to_v", "to_out.0"), ("q", "k", "v", "proj_out"), strict=True):
            _take([(f"{theirs}.{part}", f"{ours}.{mine}")], stored, tensors, published, kernel=True)
    for theirs, ours in _decoder_attentions(config):
        for kind in ("weight", "bias"):
            sources = [f"{theirs}.{part}.{kind}" for part in ("to_q", "to_k", "to_v")]
            published[f"{ours}.qkv.{kind}"] = " and ".join(sources)
            if all(source in stored for source in sources):
                # Kernels of one pixel, as matrices
                tensors[f"{ours}.qkv.{kind}"] = concat_lazy(
                    *(stored[source].flatten(1) if kind == "weight" else stored[source] for source in sources)
                )
    return _published(folder, config, stored, tensors, published, ["quantize.embedding.weight"])


def _published(
    folder: Path,
    config: Any,
    stored: Mapping[str, Tensor],
    tensors: dict[str, Tensor | LazyTensor],
    published: Mapping[str, str],
    dropped: list[str] | None = None,
) -> Published:
    # Fused ones have several sources
    taken = {name for names in published.values() for name in names.split(" and ")} | set(dropped or [])
    left = sorted(set(stored) - taken)
    if left:
        raise ValueError(f"{folder} holds tensors that are not Kandinsky's: {', '.join(left[:3])}")
    rules = [(theirs, ours) for ours, theirs in published.items()]
    return Published(FAMILY, LICENSE, config, tensors, [name for name in dropped or [] if name in stored], rules)


def _take(
    names: Any,
    stored: Mapping[str, Tensor],
    tensors: dict[str, Tensor | LazyTensor],
    published: dict[str, str],
    kernel: bool = False,
) -> None:
    """Weights and biases of modules (theirs, ours); `kernel`: matrices as kernels of one pixel."""
    for theirs, ours in names:
        for kind in ("weight", "bias"):
            published[f"{ours}.{kind}"] = f"{theirs}.{kind}"
            if f"{theirs}.{kind}" in stored:
                found = stored[f"{theirs}.{kind}"]
                tensors[f"{ours}.{kind}"] = _kernel(found) if kernel and kind == "weight" else found


def _kernel(matrix: Tensor) -> LazyTensor:
    return derived([matrix], torch.Size((*matrix.shape[:2], 1, 1)), lambda: matrix.reshape(*matrix.shape[:2], 1, 1))


def _movq_modules(config: MoVQConfig) -> Iterator[tuple[str, str]]:
    """All modules but attention's projections, as they are published and as ours."""
    last = len(config.channel_multipliers) - 1
    yield from ((name, name) for name in ("quant_conv", "post_quant_conv"))
    for part in ("encoder", "decoder"):
        yield from ((f"{part}.{name}", f"{part}.{name}") for name in ("conv_in", "conv_out"))
    yield "encoder.conv_norm_out", "encoder.norm_out"
    yield from _modulated("decoder.conv_norm_out", "decoder.norm_out")
    for theirs, ours in _encoder_blocks(config):
        yield from ((f"{theirs}.{name}", f"{ours}.{mine}") for name, mine in _RESIDUAL.items())
        yield f"{theirs}.conv_shortcut", f"{ours}.nin_shortcut"
    for theirs, ours in _encoder_attentions(config):
        yield f"{theirs}.group_norm", f"{ours}.norm"
    for level in range(last):
        yield f"encoder.down_blocks.{level}.downsamplers.0.conv", f"encoder.down.{level}.resample.conv"
    for theirs, ours in _decoder_places(config):
        if ".upsamplers." in theirs:
            yield f"{theirs}.conv", f"{ours}.conv"
        elif ".attentions." in theirs:
            yield from _modulated(f"{theirs}.spatial_norm", f"{ours}.norm")
            yield f"{theirs}.to_out.0", f"{ours}.out"
        else:
            for norm in ("norm1", "norm2"):
                yield from _modulated(f"{theirs}.{norm}", f"{ours}.{norm}")
            yield from ((f"{theirs}.{name}", f"{ours}.{name}") for name in ("conv1", "conv2"))
            yield f"{theirs}.conv_shortcut", f"{ours}.shortcut"


def _modulated(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    yield from (
        (f"{theirs}.{a}", f"{ours}.{b}") for a, b in (("norm_layer", "norm"), ("conv_y", "scale"), ("conv_b", "shift"))
    )


def _encoder_blocks(config: MoVQConfig) -> Iterator[tuple[str, str]]:
    for level in range(len(config.channel_multipliers)):
        for block in range(config.blocks):
            yield f"encoder.down_blocks.{level}.resnets.{block}", f"encoder.down.{level}.block.{block}"
    # 1 is attention
    yield from ((f"encoder.mid_block.resnets.{number}", f"encoder.mid.{2 * number}") for number in range(2))


def _encoder_attentions(config: MoVQConfig) -> Iterator[tuple[str, str]]:
    last = len(config.channel_multipliers) - 1
    for block in range(config.blocks):
        yield f"encoder.down_blocks.{last}.attentions.{block}", f"encoder.down.{last}.attn.{block}"
    yield "encoder.mid_block.attentions.0", "encoder.mid.1"


def _decoder_places(config: MoVQConfig) -> Iterator[tuple[str, str]]:
    """Residual blocks, attention and upsampling in the order in which they run."""
    for number, place in enumerate(("resnets.0", "attentions.0", "resnets.1")):
        yield f"decoder.mid_block.{place}", f"decoder.mid.{number}"
    number, last = 0, len(config.channel_multipliers) - 1
    for level in range(last + 1):  # 0 is the coarsest
        places = []
        for block in range(config.blocks + 1):  # one more than the encoder has
            places += [f"resnets.{block}"] + ([f"attentions.{block}"] if not level else [])
        for place in places + (["upsamplers.0"] if level < last else []):
            yield f"decoder.up_blocks.{level}.{place}", f"decoder.up.{number}"
            number += 1


def _decoder_attentions(config: MoVQConfig) -> Iterator[tuple[str, str]]:
    yield from ((theirs, ours) for theirs, ours in _decoder_places(config) if ".attentions." in theirs)
