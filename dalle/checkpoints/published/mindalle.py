"""minDALL-E of Kakao Brain: a folder with stage1_last.ckpt (VQGAN), stage2_last.ckpt (transformer) and tokenizer/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from dalle.checkpoints.lazy_tensor import LazyTensor
from dalle.checkpoints.published.heads import heads_of
from dalle.checkpoints.published.pickles import read_pickled
from dalle.checkpoints.published.state import Published, concat_lazy, count, rename_tensors, shape, square
from dalle.checkpoints.published.stored_state import named_tensors
from dalle.config import read_yaml
from dalle.generation.options import SamplingConfig
from dalle.image_tokenizers import ImageCodes
from dalle.models.dalle_config import DALLEConfig
from dalle.models.transformer_config import FeedForwardKind, TransformerConfig

FAMILY = "minDALL-E"
LICENSE = "CC-BY-NC-SA 4.0, not for commercial use (github.com/kakaobrain/minDALL-E, LICENSE.cc-by-nc-sa-4.0)"
CODES = ImageCodes(network="vqgan", quantizer="euclidean", codes=16_384, channels=256, factor=16)
IMAGES, TRANSFORMER, TOKENIZER = "stage1_last.ckpt", "stage2_last.ckpt", "tokenizer"
# As in its README
SAMPLING = SamplingConfig(top_k=256)
# Width -> heads of the one model that is published (1.3B); others say so in their config.yaml
_HEADS = {1536: 24}
_BLOCK = r"blocks\.(\d+)"
_RULES = (
    (r"tok_emb_txt\.weight", "text_embedding.weight"),
    (r"tok_emb_img\.weight", "image_embedding.weight"),
    (r"pos_emb_txt\.weight", "text_position"),
    (r"pos_emb_img\.weight", "cell_position"),
    (r"head_txt\.weight", "text_head.weight"),
    (r"head_img\.weight", "image_head.weight"),
    (r"ln_f\.(.+)", r"transformer.norm.\1"),
    (rf"{_BLOCK}\.ln1\.(.+)", r"transformer.blocks.\1.attention_norm.\2"),
    (rf"{_BLOCK}\.ln2\.(.+)", r"transformer.blocks.\1.feed_forward_norm.\2"),
    (rf"{_BLOCK}\.attn\.proj\.(.+)", r"transformer.blocks.\1.attention.out.\2"),
    (rf"{_BLOCK}\.attn\.(query|key|value)\.(.+)", r"transformer.blocks.\1.attention.\2.\3"),
    (rf"{_BLOCK}\.mlp\.0\.(.+)", r"transformer.blocks.\1.feed_forward.up.\2"),
    (rf"{_BLOCK}\.mlp\.2\.(.+)", r"transformer.blocks.\1.feed_forward.down.\2"),
)
# Each layer stores its causal mask as a buffer; ours comes from the config
_DROPPED = r"blocks\.\d+\.attn\.mask"


def is_there(source: Path) -> bool:
    """Whether a folder contains a minDALL-E."""
    return (source / TRANSFORMER).is_file()


def read(source: Path, pad_id: int, given: dict[str, Any]) -> Published:
    """Read the transformer of a folder.

    Args:
        source: the folder.
        pad_id: padding id of its text tokenizer.
        given: `heads`, if neither a config.yaml nor the table has it.

    Raises:
        ValueError: the file is damaged or holds something else.
    """
    tensors, dropped = rename_tensors(named_tensors(read_pickled(source / TRANSFORMER)), _RULES, _DROPPED)
    options: dict[str, Any] = {}
    if (source / "config.yaml").is_file():
        options = ((read_yaml(source / "config.yaml").get("stage2") or {}).get("hparams")) or {}
    depth = count(tensors, r"transformer\.blocks\.(\d+)\.")
    state: dict[str, Tensor | LazyTensor] = dict(tensors)
    for layer in range(depth):
        for kind in ("weight", "bias"):
            place = f"transformer.blocks.{layer}.attention"
            # As in minGPT there are three linear layers; ours is one, which reads its input once
            names = [f"{place}.{part}.{kind}" for part in ("query", "key", "value")]
            if all(name in tensors for name in names):
                state[f"{place}.qkv.{kind}"] = concat_lazy(*(tensors[name] for name in names))
                for name in names:
                    del state[name]
    words, width = shape(tensors, "text_embedding.weight")
    # Its approximation is x * sigmoid(1.702 x), not GPT-2's by tanh
    feed_forward: FeedForwardKind = "quick_gelu" if options.get("gelu_use_approx") else "gelu"
    hidden = shape(tensors, "transformer.blocks.0.feed_forward.up.weight")[0]
    config = DALLEConfig(
        transformer=TransformerConfig(
            width=width,
            depth=depth,
            heads=heads_of(width, _HEADS, {"heads": options["n_heads"]} | given if "n_heads" in options else given),
            hidden=hidden,
            feed_forward=feed_forward,
        ),
        text_vocab=words,
        text_length=shape(tensors, "text_position")[0],
        image_vocab=shape(tensors, "image_embedding.weight")[0],
        grid=square(shape(tensors, "cell_position")[0]),
        # One table for all cells of the grid, where DALL-E adds a row's and a column's embedding
        positions="learned_cells",
        pad_id=pad_id,
        # [PAD] is a word like any other, which was trained and is attended to
        padding="word",
        head_bias=False,
    )
    return Published(FAMILY, LICENSE, config, state, dropped, _RULES)
