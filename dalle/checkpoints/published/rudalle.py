"""ruDALL-E of Sber (Malevich, Emojich, Surrealist, Kandinsky): one architecture in two conventions.

v3 has 128 text tokens, then 1,024 image tokens. v2 prepends token 2 to the text, but its masks still assume 128 tokens,
so that their image grid is off by one; and its convolutional mask wraps around the edges of the image. Models were
trained with these quirks, so they are reproduced.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from dalle.checkpoints.lazy_tensor import LazyTensor
from dalle.checkpoints.published.heads import heads_of
from dalle.checkpoints.published.state import Published, count, rename_tensors, shape
from dalle.generation.options import SamplingConfig
from dalle.image_tokenizers import ImageCodes
from dalle.models.dalle_config import DALLEConfig
from dalle.models.transformer_config import TransformerConfig

FAMILY = "ruDALL-E"
LICENSE = "Apache 2.0 (github.com/ai-forever/ru-dalle, LICENSE.txt)"
CODES = ImageCodes(
    network="vqgan", quantizer="gumbel", codes=8192, channels=256, factor=8,
    source="ai-forever/rudalle-utils/vqgan.gumbelf8-sber.model.ckpt",
)  # fmt: skip
TEXT_TOKENIZER = "shonenkov/rudalle-utils/bpe.model"
SAMPLING = SamplingConfig(top_k=2048, top_p=0.995)
Convention = Literal["v2", "v3"]
_HEADS = {768: 12, 2048: 16, 3840: 60}  # width -> heads of the models listed in rudalle/dalle/__init__.py
_KERNEL = 11
_BEGIN = 2
_LAYER = r"transformer\.layers\.(\d+)"
_RULES = (
    (r"(text|image)_embeddings\.weight", r"\1_embedding.weight"),
    (r"text_pos_embeddings\.weight", "text_position"),
    (r"image_row_embeddings\.weight", "row_position"),
    (r"image_col_embeddings\.weight", "column_position"),
    (rf"{_LAYER}\.attention\.query_key_value\.(.+)", r"transformer.blocks.\1.attention.qkv.\2"),
    (rf"{_LAYER}\.attention\.dense\.(.+)", r"transformer.blocks.\1.attention.out.\2"),
    (rf"{_LAYER}\.mlp\.dense_h_to_4h\.(.+)", r"transformer.blocks.\1.feed_forward.up.\2"),
    (rf"{_LAYER}\.mlp\.dense_4h_to_h\.(.+)", r"transformer.blocks.\1.feed_forward.down.\2"),
    (rf"{_LAYER}\.input_layernorm\.(.+)", r"transformer.blocks.\1.attention_norm.\2"),
    (rf"{_LAYER}\.before_first_addition_layernorm\.(.+)", r"transformer.blocks.\1.attention_end.0.\2"),
    (rf"{_LAYER}\.post_attention_layernorm\.(.+)", r"transformer.blocks.\1.feed_forward_norm.\2"),
    (rf"{_LAYER}\.before_second_addition_layernorm\.(.+)", r"transformer.blocks.\1.feed_forward_end.0.\2"),
    (r"transformer\.final_layernorm\.(.+)", r"transformer.norm.\1"),
    (r"to_logits\.0\.(.+)", r"head_norm.\1"),
    (r"to_logits\.1\.(.+)", r"to_logits.\1"),
)
_DROPPED = r"transformer\.(row|col|conv)_mask"  # rebuilt, because their dtype differs between files


def is_of(tensors: dict[str, Tensor]) -> bool:
    """Whether tensors, by their published names, are of this family."""
    return "text_pos_embeddings.weight" in tensors and "image_row_embeddings.weight" in tensors


def read(published: dict[str, Tensor], given: dict[str, Any]) -> Published:
    """Convert the tensors of a checkpoint.

    Args:
        published: tensors by their published names.
        given: `heads`, `convention` ("v2" or "v3"), if the file does not record them.

    Raises:
        ValueError: they are of something else, or an option has to be given.
    """
    tensors, dropped = rename_tensors(published, _RULES, _DROPPED)
    words, width = shape(tensors, "text_embedding.weight")
    side = shape(tensors, "row_position")[0]
    length = shape(tensors, "text_position")[0] - 1
    depth = count(tensors, r"transformer\.blocks\.(\d+)\.")
    convention = convention_of(published, length, side, given)
    prefix = length + (convention == "v2")
    state: dict[str, Tensor | LazyTensor] = dict(tensors)
    if convention == "v3":
        # The table has a row more than there are text tokens, for the begin token that only v2 prepends
        state["text_position"] = tensors["text_position"][:length]
        dropped.append(f"text_pos_embeddings.weight[{length}]")
    state["row_position"] = tensors["row_position"][:, None]
    state["column_position"] = tensors["column_position"][None]
    for kind in ("weight", "bias"):
        shape(tensors, f"to_logits.{kind}")
        # One output layer over text and image ids; ours has a head for each, so that sampling skips the text
        both = state.pop(f"to_logits.{kind}")
        assert isinstance(both, Tensor)
        state[f"text_head.{kind}"], state[f"image_head.{kind}"] = both[:words], both[words:]
    size = prefix + side**2 - 1  # without the last image token
    # Layers 1, 5, 9, ... attend by column, the last one by convolution, all others by row.
    layers = tuple(1 if (layer - 1) % 4 == 0 else 2 if layer == depth - 1 else 0 for layer in range(depth))
    tables = masks(length, side, convention)[: max(layers, default=0) + 1]  # small models have no convolutional layer
    state["masks"] = torch.stack([table[:size, :size] for table in tables])
    config = DALLEConfig(
        transformer=TransformerConfig(
            width=width,
            depth=depth,
            heads=heads_of(width, _HEADS, given),
            hidden=shape(tensors, "transformer.blocks.0.feed_forward.up.weight")[0],
            feed_forward="gelu_tanh",
            sandwich=True,
        ),
        text_vocab=words - length,
        text_length=length,
        image_vocab=shape(tensors, "image_embedding.weight")[0],
        grid=(side, side),
        stored_masks=layers,
        begin_id=_BEGIN if convention == "v2" else None,
        head_norm=True,
    )
    return Published(f"{FAMILY} ({convention})", LICENSE, config, state, dropped, _RULES)


def convention_of(published: dict[str, Tensor], length: int, side: int, given: dict[str, Any]) -> Convention:
    """The convention, v2 or v3: as given, or detected by the file's convolutional mask.

    Raises:
        ValueError: it is neither given nor recorded.
    """
    if "convention" in given:
        if given["convention"] not in ("v2", "v3"):
            raise ValueError(f"convention is {given['convention']!r}; give convention=v2 or convention=v3")
        return "v2" if given["convention"] == "v2" else "v3"
    conv = published.get("transformer.conv_mask")
    if conv is not None:
        for convention in ("v3", "v2"):
            if torch.equal(conv > 0.5, masks(length, side, convention)[2]):
                return convention
    raise ValueError("its convention is not recorded: give convention=v3 (Malevich v3, Surrealist) or convention=v2")


def masks(length: int, side: int, convention: Convention) -> list[Tensor]:
    """The row, column and convolutional masks, bool [S, S] with S = length + side^2, True where a query attends.

    Row: the `side` preceding tokens (a sliding window). Column: the same column. Convolutional: a window of 11 x 11
    around the key, clipped at the edges in v3 and wrapped to the opposite edge in v2.
    """
    size = length + side**2
    position = torch.arange(size)
    back = position[:, None] - position[None]
    # Keys in the text are visible to every later query
    text, causal = (position < length)[None], back >= 0
    cell = (position - length).clamp(min=0)
    down = (cell // side)[:, None] - (cell // side)[None]
    across = (cell % side)[:, None] - (cell % side)[None]
    if convention == "v2":
        down, across = (_wrapped_distance(distance, side) for distance in (down, across))
    reach = _KERNEL // 2
    visible = (down.abs() <= reach) & (across.abs() <= reach)
    return [causal & (text | kind) for kind in (back <= side, back % side == 0, visible | (back == 0))]


def _wrapped_distance(distance: Tensor, side: int) -> Tensor:
    """The distance between two rows or columns on a torus."""
    return torch.minimum(distance % side, -distance % side)
