"""Models in whose memory each term of the plan weighs: depth, codes, sparse attention, gates."""

from __future__ import annotations

from dataclasses import replace

from dalle.models.dalle_config import DALLEConfig
from dalle.models.transformer_config import TransformerConfig

IMAGES = 4
SIZES = {
    "small": DALLEConfig(
        transformer=TransformerConfig(width=64, depth=3, heads=4), text_vocab=300, text_length=16, image_vocab=512
    ),
    "deep": DALLEConfig(
        transformer=TransformerConfig(width=192, depth=8, heads=3),
        text_vocab=2048,
        text_length=48,
        grid=(12, 12),
        attention=("row", "column", "row", "row"),
        last_attention="conv",
    ),
    "many codes": DALLEConfig(
        transformer=TransformerConfig(width=128, depth=4, heads=4),
        text_vocab=1024,
        text_length=32,
        image_vocab=8192,
        grid=(16, 16),
    ),
    "sparse": DALLEConfig(
        transformer=TransformerConfig(width=128, depth=4, heads=4),
        text_vocab=300,
        text_length=64,
        grid=(20, 20),
        attention=("row", "column", "row", "conv"),
    ),
    "gated": DALLEConfig(
        transformer=TransformerConfig(width=128, depth=4, heads=2, qk_norm=True, feed_forward="swiglu", dropout=0.1),
        positions="rope",
        grid=(12, 12),
    ),
    "language model": DALLEConfig(  # of Qwen2's kind
        transformer=TransformerConfig(
            width=128, depth=4, heads=4, kv_heads=2, feed_forward="swiglu", norm="rms", biases="qkv"
        ),
        positions="rope_1d",
        padding="left",
        text_head=False,
        text_length=48,
        grid=(12, 12),
    ),
}


def with_checkpointing(config: DALLEConfig, on: bool) -> DALLEConfig:
    return replace(config, transformer=replace(config.transformer, checkpoint_activations=on))
