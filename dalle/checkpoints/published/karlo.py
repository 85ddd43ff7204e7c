"""Karlo (kakaobrain/karlo-v1-alpha), an unCLIP in diffusers' folders: its decoder and its upsamplers as ours.

Each part has a folder of its own with `config.json` and its weights; what conditions the decoder, `text_proj`, is apart
from its U-Net. Shapes: D embedding, C context, K image tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dalle.checkpoints.lazy_tensor import LazyTensor
from dalle.checkpoints.published.files import read_json, read_state
from dalle.checkpoints.published.state import Published, derived, shape
from dalle.checkpoints.published.unet import unet_config, unet_tensors
from dalle.models.diffusion_decoder import DecoderConfig
from dalle.models.noise_schedule import CosineConfig
from dalle.models.upsampler import UpsamplerConfig

LICENSE = "CreativeML Open RAIL-M (github.com/kakaobrain/karlo, LICENSE.weight)"
_TEXT_PROJ = {
    "clip_image_embeddings_project_to_time_embeddings": "image_to_vector",
    "embedding_proj": "text_to_vector",
    "encoder_hidden_states_proj": "states_in",
    "text_encoder_hidden_states_norm": "states_norm",
}
_TIME = {"time_embedding.linear_1": "time.up", "time_embedding.linear_2": "time.down"}
_TOKENS, _NULL = "clip_extra_context_tokens_proj", "learned_classifier_free_guidance_embeddings"


def read_decoder(folder: Path, text_length: int = 77) -> Published:
    """The decoder in `folder`/decoder with its conditions in `folder`/text_proj.

    Raises:
        ValueError: a part is missing, damaged, or of another shape.
    """
    for name in ("decoder", "text_proj"):
        if not (folder / name).is_dir():
            raise ValueError(f"{folder} has no folder {name}: Karlo's decoder is there, and what it reads in text_proj")
    settings = read_json(folder / "decoder/config.json")
    unet, projection = read_state(folder / "decoder"), read_state(folder / "text_proj")
    config, tensors, published = _decoder(settings, unet, projection, text_length)
    _check_nothing_left(folder, {**unet, **projection}, published)
    return Published("Karlo", LICENSE, config, tensors, [], [(theirs, ours) for ours, theirs in published.items()])


def read_upsampler(folder: Path, last: bool = False, low_size: int = 64) -> Published:
    """One of the two upsamplers: `folder`/super_res_first, or with `last` the one that takes the last step.

    Args:
        folder: Karlo's.
        last: the network of the last step, super_res_last.
        low_size: height and width of the decoder's images in pixels, which its files do not record.

    Raises:
        ValueError: it is missing, damaged, or of another shape.
    """
    place = folder / ("super_res_last" if last else "super_res_first")
    if not place.is_dir():
        raise ValueError(f"{folder} has no folder {place.name}: one of Karlo's two upsamplers is there")
    settings, stored = read_json(place / "config.json"), read_state(place)
    shapes = unet_config(settings)
    found, names = unet_tensors(shapes, stored)
    tensors: dict[str, Tensor | LazyTensor] = {f"unet.{ours}": tensor for ours, tensor in found.items()}
    published = {f"unet.{ours}": theirs for ours, theirs in names.items()}
    for theirs, ours in _TIME.items():
        for kind in ("weight", "bias"):
            published[f"{ours}.{kind}"] = f"{theirs}.{kind}"
            if f"{theirs}.{kind}" in stored:
                tensors[f"{ours}.{kind}"] = stored[f"{theirs}.{kind}"]
    _check_nothing_left(place, stored, published)
    config = UpsamplerConfig(
        image_size=settings.get("sample_size") or 256,
        low_size=low_size,
        unet=shapes,
        predicts="epsilon",
        # Three channels for the noise, three more where the variance is learned
        learned_variance=shape(stored, "conv_out.weight", 4)[0] == 6,
        schedule=CosineConfig(),
    )
    return Published("Karlo", LICENSE, config, tensors, [], [(theirs, ours) for ours, theirs in published.items()])


def _check_nothing_left(folder: Path, stored: Mapping[str, Tensor], published: Mapping[str, str]) -> None:
    taken = {name for names in published.values() for name in names.split(" and ")}
    left = sorted(set(stored) - taken)
    if left:
        raise ValueError(f"{folder} holds tensors that are not Karlo's: {', '.join(left[:3])}")


def _decoder(
    settings: Mapping[str, Any], unet: Mapping[str, Tensor], projection: Mapping[str, Tensor], text_length: int
) -> tuple[DecoderConfig, dict[str, Tensor | LazyTensor], dict[str, str]]:
    """Config, tensors under our names, and what each was called."""
    shapes = unet_config(settings)
    context, text_width = shape(projection, "encoder_hidden_states_proj.weight", 2)
    dim = shape(projection, f"{_TOKENS}.weight", 2)[1]
    count = shape(projection, f"{_TOKENS}.weight", 2)[0] // context  # one row of the projection gives all tokens
    found, names = unet_tensors(shapes, unet)
    tensors: dict[str, Tensor | LazyTensor] = {f"unet.{ours}": tensor for ours, tensor in found.items()}
    published = {f"unet.{ours}": theirs for ours, theirs in names.items()}
    for source, table in ((projection, _TEXT_PROJ), (unet, _TIME)):
        for theirs, ours in table.items():
            for kind in ("weight", "bias"):
                published[f"{ours}.{kind}"] = f"{theirs}.{kind}"
                if f"{theirs}.{kind}" in source:
                    tensors[f"{ours}.{kind}"] = source[f"{theirs}.{kind}"]
    for kind in ("weight", "bias"):
        published[f"image_to_tokens.{kind}"] = f"{_TOKENS}.{kind}"
        if f"{_TOKENS}.{kind}" in projection:
            tensors[f"image_to_tokens.{kind}"] = _turned(projection[f"{_TOKENS}.{kind}"], count)
    published["null_embed"] = _NULL
    if _NULL in projection:
        null = projection[_NULL]
        tensors["null_embed"] = derived([null], torch.Size((null.numel(),)), null.flatten)  # from [1, D]
    # It reads raw embeddings: statistics that change nothing
    tensors |= {"image_mean": torch.zeros(dim), "image_deviation": torch.ones(dim)}
    config = DecoderConfig(
        image_size=settings.get("sample_size") or 64,
        unet=shapes,
        embed_dim=dim,
        text_width=text_width,
        text_length=text_length,
        context_width=context,
        image_tokens=count,
        predicts="epsilon",
        learned_variance=shape(unet, "conv_out.weight", 4)[0] == 6,
        schedule=CosineConfig(),
    )
    return config, tensors, published


def _turned(rows: Tensor, count: int) -> LazyTensor:
    """Rows of [C, K], as Karlo has them, in the order [K, C] of ours."""
    # Their code views the projection as [B, C, K] and transposes it; here that is done once, to the weights
    return derived([rows], rows.shape, lambda: rows.unflatten(0, (-1, count)).transpose(0, 1).flatten(0, 1))
