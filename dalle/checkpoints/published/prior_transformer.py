"""The diffusion prior of Karlo and Kandinsky 2.2, diffusers' PriorTransformer, as ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dalle.checkpoints.lazy_tensor import LazyTensor
from dalle.checkpoints.published.files import read_json, read_state
from dalle.checkpoints.published.state import Published, concat_lazy, derived, shape
from dalle.models.diffusion_prior import DiffusionPriorConfig
from dalle.models.transformer_config import TransformerConfig

_OUTER = {
    "time_embedding.linear_1": "time.up",
    "time_embedding.linear_2": "time.down",
    "proj_in": "noised_in",
    "embedding_proj": "embed_in",
    "encoder_hidden_states_proj": "states_in",
    "norm_out": "transformer.norm",
    "proj_to_clip_embeddings": "out",
}
_BLOCK = {
    "norm1": "attention_norm",
    "attn1.to_out.0": "attention.out",
    # norm2 would be cross-attention's, which a prior has not
    "norm3": "feed_forward_norm",
    "ff.net.0.proj": "feed_forward.up",
    "ff.net.2": "feed_forward.down",
}
# Published with leading dimensions of 1
_FLAT = {
    "positional_embedding": "positions",
    "prd_embedding": "query",
    "clip_mean": "image_mean",
    "clip_std": "image_deviation",
}
# What our prior computes of the options that diffusers has
_ONLY: dict[str, tuple[Any, Any]] = {
    "additional_embeddings": (4, 4),
    "added_emb_type": ("prd", "prd"),
    "encoder_hid_proj_type": ("linear", "linear"),
    "norm_in_type": (None, None),
    "embedding_proj_norm_type": (None, None),
    "time_embed_act_fn": ("silu", "silu"),
}


def read_prior(folder: Path, family: str, terms: str) -> Published:
    """The prior in a folder with `config.json` and its weights.

    Args:
        folder: of the prior alone.
        family: whose it is, for messages.
        terms: license of the weights.

    Raises:
        ValueError: a file is missing or damaged, or it is a prior of another architecture.
    """
    settings = read_json(folder / "config.json")
    for name, (default, only) in _ONLY.items():
        if settings.get(name, default) != only:
            raise ValueError(f"{folder / 'config.json'} says {name}: {settings[name]!r}, expected {only!r}")
    stored = read_state(folder)
    config = _config(settings, stored)
    tensors, published = _tensors(config, stored)
    left = sorted(set(stored) - {name for names in published.values() for name in names.split(" and ")})
    if left:
        raise ValueError(f"{folder} has tensors that a prior has not: {', '.join(left[:3])}")
    return Published(family, terms, config, tensors, [], [(theirs, ours) for ours, theirs in published.items()])


def _config(settings: Mapping[str, Any], stored: Mapping[str, Tensor]) -> DiffusionPriorConfig:
    # The defaults of diffusers
    heads, width = settings.get("num_attention_heads", 32), shape(stored, "proj_in.weight", 2)[0]
    return DiffusionPriorConfig(
        transformer=TransformerConfig(
            width=width,
            depth=settings.get("num_layers", 20),
            heads=heads,
            head_channels=settings.get("attention_head_dim", 64),
            hidden=shape(stored, "transformer_blocks.0.ff.net.0.proj.weight", 2)[0],
        ),
        embed_dim=shape(stored, "proj_in.weight", 2)[1],
        text_width=shape(stored, "encoder_hidden_states_proj.weight", 2)[1],
        # Behind the text: its embedding, the step, the noised image embedding, and the query for the result
        text_length=shape(stored, "positional_embedding", 3)[1] - 4,
        null_caption="empty",
    )


def _tensors(
    config: DiffusionPriorConfig, stored: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor | LazyTensor], dict[str, str]]:
    """Tensors under our names, and what each is called there."""
    names = dict(_OUTER)
    tensors: dict[str, Tensor | LazyTensor] = {}
    published: dict[str, str] = {}
    for layer in range(config.transformer.depth):
        theirs, ours = f"transformer_blocks.{layer}", f"transformer.blocks.{layer}"
        names |= {f"{theirs}.{name}": f"{ours}.{mine}" for name, mine in _BLOCK.items()}
        for kind in ("weight", "bias"):
            sources = [f"{theirs}.attn1.to_{part}.{kind}" for part in "qkv"]
            published[f"{ours}.attention.qkv.{kind}"] = " and ".join(sources)
            if all(source in stored for source in sources):
                tensors[f"{ours}.attention.qkv.{kind}"] = concat_lazy(*(stored[source] for source in sources))
    for theirs, ours in names.items():
        for kind in ("weight", "bias"):
            published[f"{ours}.{kind}"] = f"{theirs}.{kind}"
            if f"{theirs}.{kind}" in stored:
                tensors[f"{ours}.{kind}"] = stored[f"{theirs}.{kind}"]
    for theirs, ours in _FLAT.items():
        published[ours] = theirs
        if theirs in stored:
            tensors[ours] = _flat(stored[theirs])
    # It reads raw text embeddings: statistics that change nothing
    tensors |= {"text_mean": torch.zeros(config.embed_dim), "text_deviation": torch.ones(config.embed_dim)}
    return tensors, published


def _flat(tensor: Tensor) -> LazyTensor:
    """Without its leading dimensions of 1."""
    size = list(tensor.shape)
    while len(size) > 1 and size[0] == 1:
        size = size[1:]
    return derived([tensor], torch.Size(size), lambda: tensor.reshape(size))
