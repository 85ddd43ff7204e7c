"""Configs of tiny models, which tests change by keyword; fields of the transformer are given beside the model's own."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import nn

from dalle.models.clip import CLIPConfig
from dalle.models.dalle import DALLE
from dalle.models.dalle_config import DALLEConfig
from dalle.models.transformer_config import TransformerConfig

_OF_TRANSFORMER = {field.name for field in fields(TransformerConfig)}


def _split(options: dict[str, Any]) -> tuple[TransformerConfig, dict[str, Any]]:
    shape = {name: value for name, value in options.items() if name in _OF_TRANSFORMER}
    return transformer_config(**shape), {name: value for name, value in options.items() if name not in shape}


def transformer_config(**options: Any) -> TransformerConfig:
    """Two layers of width 16 with two heads."""
    return TransformerConfig(**{"width": 16, "depth": 2, "heads": 2, **options})


def dalle_config(**options: Any) -> DALLEConfig:
    """5 text tokens of 20, then 3x4 codes of 11."""
    shape, own = _split(options)
    usual = {"text_vocab": 20, "text_length": 5, "image_vocab": 11, "grid": (3, 4), "conv_kernel": 3}
    return DALLEConfig(**{"transformer": shape, **usual, **own})


def clip_config(**options: Any) -> CLIPConfig:
    """Images of 16x16 pixels in patches of 8, 12 text tokens of 300; both towers are alike."""
    shape, own = _split(options)
    usual = {"image_size": 16, "patch_size": 8, "text_vocab": 300, "text_length": 12, "embed_dim": 8}
    return CLIPConfig(**{"vision": shape, "text": shape, **usual, **own})


def random_dalle(config: DALLEConfig, std: float, center_norms: bool = False) -> DALLE:
    """A model whose weights, all drawn from seed 0, are large enough that every part counts.

    Args:
        config: Its shape.
        std: Deviation of all weights.
        center_norms: Draw the weights of norms around 1 instead of 0.
    """
    torch.manual_seed(0)
    model = DALLE(config).eval()
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, mean=float(center_norms and "norm" in name and "weight" in name), std=std)
    return model
