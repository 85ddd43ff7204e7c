"""Numbers of absurd size in a recipe or in a folder's config.yaml are one line, before anything is allocated."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import dalle
from dalle.image_tokenizers import DVAEConfig, VQGANConfig
from dalle.image_tokenizers.dalle_pytorch_vae import DiscreteVAEConfig
from dalle.image_tokenizers.quantize import GumbelConfig
from dalle.image_tokenizers.vq import VQConfig
from dalle.models.clip import CLIPConfig
from dalle.models.dalle_config import DALLEConfig
from dalle.models.transformer_config import TransformerConfig

CLASSES: tuple[Any, ...] = (TransformerConfig, DALLEConfig, CLIPConfig, VQGANConfig, DVAEConfig, DiscreteVAEConfig)
FIELDS = [(cls, field.name) for cls in CLASSES for field in dataclasses.fields(cls) if type(field.default) is int]
FIELDS = [(cls, name) for cls, name in FIELDS if name not in ("pad_id", "eos_id", "patch", "conv_kernel")]  # no sizes


@pytest.mark.parametrize("cls, name", FIELDS, ids=lambda value: getattr(value, "__name__", value))
@pytest.mark.parametrize("value", [10**13, 2**80])
def test_absurd_sizes_are_refused_before_allocation(cls: Any, name: str, value: int) -> None:
    begun = time.process_time()
    with pytest.raises(ValueError) as caught:
        cls(**{name: value})
    assert len(str(caught.value)) < 400 and time.process_time() - begun < 5, "it was tried"


@pytest.mark.parametrize("quantizer", [VQConfig(codebook_size=10**13), GumbelConfig(code_channels=10**13)])
def test_absurd_quantizers_are_refused(quantizer: Any) -> None:
    with pytest.raises(ValueError, match="more than any machine holds"):
        VQGANConfig(quantizer=quantizer)


@pytest.mark.parametrize("name", ["text_length", "text_vocab", "image_vocab"])
def test_absurd_sizes_in_a_model_folder_are_refused(name: str, tiny_copy: Path) -> None:
    folder = tiny_copy / "model"
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["model"][name] = 10**13
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=rf"{name} 1\d+.*more than any machine holds; is one mistyped\?") as caught:
        dalle.load_model(folder)
    assert "\n" not in str(caught.value)


def test_largest_known_models_are_accepted() -> None:
    """The paper's 12 billion parameters, ruDALL-E XXL, an image of 8192 pixels a side, a CLIP of bigG size."""
    DALLEConfig(
        transformer=TransformerConfig(width=3968, depth=64, heads=62), text_vocab=16384, text_length=256,
        image_vocab=8192, grid=(32, 32),
    )  # fmt: skip
    DALLEConfig(transformer=TransformerConfig(width=3840, depth=64, heads=60), image_vocab=2**18, grid=(96, 96))
    VQGANConfig(
        image_size=8192, channels=256, channel_multipliers=[1, 1, 2, 2, 4], blocks=4, latent_channels=256,
        quantizer=VQConfig(codebook_size=2**18, code_channels=256),
    )  # fmt: skip
    tower = TransformerConfig(width=1664, depth=48, heads=16, hidden=8192)
    CLIPConfig(image_size=336, patch_size=14, vision=tower, text=tower, text_vocab=49408, text_length=77)
    DVAEConfig(image_size=256, codebook_size=8192, hidden=256)
    DiscreteVAEConfig(layers=5, blocks=4, hidden=512)
