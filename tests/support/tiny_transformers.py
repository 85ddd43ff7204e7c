"""A tiny transformer of each kind, prompts, and options, with which ways of drawing are compared."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from dalle.models.dalle import DALLE
from support.tiny_configs import dalle_config, random_dalle

CONFIG = dalle_config()
TEXT = torch.tensor([[3, 8, 1, 0, 0], [5, 5, 19, 7, 2], [1, 0, 0, 0, 0]])
SEEDS = [[4, 5, 6], [7], [4, 9]]
KINDS: list[dict[str, Any]] = [
    {"attention": ("full",)},
    {"attention": ("row",)},
    {"attention": ("column",)},
    {"attention": ("conv",)},
    {"attention": ("row", "column"), "last_attention": "conv", "positions": "rope"},
    {"shift_tokens": True, "positions": "learned_cells", "begin_id": 2},
    {"positions": "rope_1d", "padding": "left", "text_head": False, "null_keeps_ends": True, "head_hidden": True},
    {"positions": "rope_1d", "row_ends": True},
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
    return random_dalle(replace(CONFIG, **options), std=scale).double()
