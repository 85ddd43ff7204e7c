"""A tiny transformer of each kind, prompts, and options, with which ways of drawing are compared."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from dalle.models.dalle import DALLE
from dalle.models.dalle_config import DALLEConfig
from dalle.models.transformer_config import TransformerConfig

CONFIG = DALLEConfig(
    transformer=TransformerConfig(width=16, depth=2, heads=2),
    text_vocab=20,
    text_length=5,
    image_vocab=11,
    grid=(3, 4),
    conv_kernel=3,
)
TEXT = torch.tensor([[3, 8, 1, 0, 0], [5, 5, 19, 7, 2], [1, 0, 0, 0, 0]])
SEEDS = [[4, 5, 6], [7], [4, 9]]
KINDS: list[dict[str, Any]] = [
    {"attention": ("full",)},
    {"attention": ("row",)},
    {"attention": ("column",)},
    {"attention": ("conv",)},
    {"attention": ("row", "column"), "last_attention": "conv", "positions": "rope"},
    {"shift_tokens": True, "positions": "learned_cells", "begin_id": 2},
    {"transformer": replace(CONFIG.transformer, reversible=True, feed_forward="geglu", qk_norm=True)},
]
OPTIONS: list[dict[str, Any]] = [
    {"guidance": 2.5, "temperature": 0.8},
    {"guidance": 0.5, "top_k": 4, "top_p": 0.9},
    {"guidance": 3.0, "temperature": 0},
    {"guidance": 2.5, "guidance_until": 5},
    {"guidance": 2.5, "guidance_until": 0},
    {"guidance_until": 1, "guidance": 2.0, "batch_size": 2},
    {"batch_size": 1},
    {"batch_size": 4},
]


def tiny(options: dict[str, Any], scale: float = 0.4) -> DALLE:
    """A model with random weights that look at what went before; in float64, so that ties do not decide."""
    torch.manual_seed(0)
    model = DALLE(replace(CONFIG, **options)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=scale)
    return model.double()
