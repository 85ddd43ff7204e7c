"""LlamaGen (arXiv 2406.06525): a Llama over image tokens, conditioned on T5 features (t2i) or a class (c2i)."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dalle.checkpoints.lazy_tensor import LazyTensor
from dalle.checkpoints.published.heads import heads_of, permute_rope_rows
from dalle.checkpoints.published.state import Published, concat_lazy, count, rename_tensors, shape
from dalle.generation.options import SamplingConfig
from dalle.image_tokenizers import ImageCodes
from dalle.models.dalle_config import DALLEConfig
from dalle.models.transformer_config import TransformerConfig

FAMILY = "LlamaGen"
LICENSE = "MIT (github.com/FoundationVision/LlamaGen, LICENSE)"
TEXT_ENCODER = "google/flan-t5-xl"
# Those of VQ-8 too, and of codebooks that are not normalized, which its training options allow
_CODES = ImageCodes(network="vqgan", codes=16_384, channels=8)
T2I_CODES = replace(_CODES, source="peizesun/llamagen_t2i/vq_ds16_t2i.pt")
C2I_CODES = replace(_CODES, source="FoundationVision/LlamaGen/vq_ds16_c2i.pt")
# Defaults of their sample_t2i.py and sample_c2i.py
T2I_SAMPLING, C2I_SAMPLING = SamplingConfig(guidance=7.5, top_k=1000), SamplingConfig(guidance=4.0, top_k=2000)
# width -> heads of B, L, XL, XXL, XXXL, 1B, 3B, 7B (autoregressive/models/gpt.py)
_HEADS = {768: 12, 1024: 16, 1280: 20, 1536: 24, 2560: 40, 2048: 32, 3200: 32, 4096: 32}
_BASE = 10_000.0
_LAYER = r"layers\.(\d+)"
_RULES = (
    (r"cls_embedding\.embedding_table\.weight", "text_embedding.weight"),
    (r"cls_embedding\.cap_proj\.fc1\.weight", "text_embedding.up.weight"),
    (r"cls_embedding\.cap_proj\.fc2\.weight", "text_embedding.down.weight"),
    (r"cls_embedding\.uncond_embedding", "text_embedding.null"),
    (r"tok_embeddings\.weight", "image_embedding.weight"),
    (rf"{_LAYER}\.attention\.wqkv\.weight", r"transformer.blocks.\1.attention.qkv.weight"),
    (rf"{_LAYER}\.attention\.wo\.weight", r"transformer.blocks.\1.attention.out.weight"),
    (rf"{_LAYER}\.feed_forward\.(w[123])\.weight", r"transformer.blocks.\1.feed_forward.\2"),
    (rf"{_LAYER}\.attention_norm\.weight", r"transformer.blocks.\1.attention_norm.weight"),
    (rf"{_LAYER}\.ffn_norm\.weight", r"transformer.blocks.\1.feed_forward_norm.weight"),
    (r"norm\.weight", "transformer.norm.weight"),
    (r"output\.weight", "image_head.weight"),
)
_DROPPED = r"freqs_cis|causal_mask|.*\.kv_cache\..+"


def is_of(tensors: dict[str, Tensor]) -> bool:
    """Whether tensors, by their published names, are of this family."""
    return "tok_embeddings.weight" in tensors and "layers.0.attention.wqkv.weight" in tensors


def read(published: dict[str, Tensor], options: dict[str, Any], name: str, given: dict[str, Any]) -> Published:
    """Convert the tensors of a checkpoint.

    Args:
        published: tensors by their published names.
        options: training options, if the checkpoint stores them.
        name: name of the file, which may contain the image size in pixels.
        given: `heads` and `grid` (rows of image tokens), if they are not recorded.

    Raises:
        ValueError: they are of something else, or an option has to be given.
    """
    tensors, dropped = rename_tensors(published, _RULES, _DROPPED)
    vocab, width = shape(tensors, "image_embedding.weight")
    depth = count(tensors, r"transformer\.blocks\.(\d+)\.")
    heads = heads_of(width, _HEADS, given)
    rows = _rows(options, name, given)
    classes = "text_embedding.weight" in tensors
    length = 1 if classes else shape(tensors, "text_embedding.null")[0]  # a class is one token
    words = shape(tensors, "text_embedding.weight")[0] if classes else 1
    state: dict[str, Tensor | LazyTensor] = dict(tensors)
    for layer in range(depth):
        place = f"transformer.blocks.{layer}"
        for part in ("w1", "w2", "w3"):
            shape(tensors, f"{place}.feed_forward.{part}")
            del state[f"{place}.feed_forward.{part}"]
        # SwiGLU is w2(silu(w1 x) * w3 x); we fuse gate (w1) and up (w3) to one matrix, gate first.
        gate, down, up = (tensors[f"{place}.feed_forward.{part}"] for part in ("w1", "w2", "w3"))
        state[f"{place}.feed_forward.up.weight"] = concat_lazy(gate, up)
        state[f"{place}.feed_forward.down.weight"] = down
        fused = f"{place}.attention.qkv.weight"
        if shape(tensors, fused)[0] != 3 * width:
            raise ValueError(
                f"layer {layer} has fewer heads for keys than for queries (grouped-query attention), not supported"
            )
        state[fused] = permute_rope_rows(tensors[fused], heads, "qk")
    state["rope_cos"], state["rope_sin"] = rope(length, rows, width // heads)
    config = DALLEConfig(
        transformer=TransformerConfig(
            width=width,
            depth=depth,
            heads=heads,
            hidden=shape(tensors, "transformer.blocks.0.feed_forward.w1")[0],
            feed_forward="swiglu",
            norm="rms",
            biases="none",
        ),
        text_vocab=words,
        text_length=length,
        image_vocab=vocab,
        grid=(rows, rows),
        positions="stored_rope",
        # The last class stands for none: it was trained by dropping labels, and guidance leads away from it
        pad_id=words - 1,
        padding="word",
        text_features=None if classes else shape(tensors, "text_embedding.null")[1],
        text_head=False,
        head_bias=False,
    )
    return Published(f"{FAMILY} ({'c2i' if classes else 't2i'})", LICENSE, config, state, dropped, _RULES)


def _rows(options: dict[str, Any], name: str, given: dict[str, Any]) -> int:
    if "grid" in given:
        return int(given["grid"])
    pixels, factor = options.get("image_size"), options.get("downsample_size", 16)
    # The names of the published files end in it: c2i_B_256.pt, t2i_XL_stage2_512.pt
    if pixels is None and (match := re.search(r"_(256|384|512)(?!\d)", name)):
        pixels = int(match[1])
    if not isinstance(pixels, int) or not isinstance(factor, int):
        raise ValueError("its image size is not recorded: give grid=16 (256 pixels), 24 (384) or 32 (512)")
    return pixels // factor


def rope(length: int, rows: int, dim: int) -> tuple[Tensor, Tensor]:
    """2D rotary tables, cosines and sines [length + rows^2 - 1, dim / 2]: half a head encodes the row, half the column.

    The published code has zeros for both at the prefix, which zeroes its keys: all of it gets equal attention.
    """
    frequency = _BASE ** (-torch.arange(0, dim // 2, 2).float() / (dim // 2))  # [dim / 4]
    angle = torch.outer(torch.arange(rows).float(), frequency)
    # The last one is never read
    cells = torch.cat((angle.repeat_interleave(rows, 0), angle.repeat(rows, 1)), dim=1)[:-1]
    prefix = torch.zeros(length, dim // 2)
    return torch.cat((prefix, cells.cos())), torch.cat((prefix, cells.sin()))
