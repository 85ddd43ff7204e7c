"""SigLIP and SigLIP 2 in the layout of Hugging Face's `SiglipModel` (not the NaFlex variants)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dalle.checkpoints.lazy_tensor import LazyTensor
from dalle.checkpoints.published.hf_towers import TOWER_RULES
from dalle.checkpoints.published.state import Published, count, fuse_qkv, rename_tensors, shape, square
from dalle.models.clip import CLIPConfig
from dalle.models.transformer_config import FeedForwardKind, TransformerConfig

_FAMILY = ("a SigLIP of Hugging Face", "see its repository (Google's: Apache-2.0)")
_NAMES = (
    (r"vision_model\.embeddings\.patch_embedding\.(.+)", r"vision.patches.\1"),
    (r"vision_model\.embeddings\.position_embedding\.weight", "vision.positions"),
    (r"vision_model\.post_layernorm\.(.+)", r"vision.transformer.norm.\1"),
    (r"vision_model\.head\.probe", "vision.pooling.query"),
    (r"vision_model\.head\.attention\.in_proj_(.+)", r"vision.pooling.in.\1"),
    (r"vision_model\.head\.attention\.out_proj\.(.+)", r"vision.pooling.out.\1"),
    (r"vision_model\.head\.layernorm\.(.+)", r"vision.pooling.norm.\1"),
    (r"vision_model\.head\.mlp\.fc1\.(.+)", r"vision.pooling.feed_forward.up.\1"),
    (r"vision_model\.head\.mlp\.fc2\.(.+)", r"vision.pooling.feed_forward.down.\1"),
    (r"text_model\.embeddings\.token_embedding\.weight", "text.tokens.weight"),
    (r"text_model\.embeddings\.position_embedding\.weight", "text.positions"),
    (r"text_model\.final_layer_norm\.(.+)", r"text.transformer.norm.\1"),
    (r"text_model\.head\.(.+)", r"text.projection.\1"),
    (r"(logit_scale|logit_bias)", r"\1"),
    *TOWER_RULES,
)
_ACTIVATIONS: dict[Any, FeedForwardKind] = {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}


def is_of(names: Mapping[str, Any]) -> bool:
    """Whether these tensor names are those of a SigLIP."""
    return "vision_model.head.probe" in names


def read(published: Mapping[str, Tensor], config: Mapping[str, Any], pixels: Mapping[str, Any]) -> Published:
    """Convert a SigLIP to our CLIP.

    Args:
        published: its tensors.
        config: its config.json with heads and activation; {} assumes those of the paper's Base model.
        pixels: `mean` and `std` of image normalization; {} assumes 0.5.

    Raises:
        ValueError: a tensor is missing, or the architecture is not supported.
    """
    if len(published["vision_model.embeddings.patch_embedding.weight"].shape) != 4:
        raise ValueError("it takes images of any shape (NaFlex), which is not supported: use one of fixed resolution")
    tensors, dropped = rename_tensors(published, _NAMES, r".*\.position_ids")
    state: dict[str, Tensor | LazyTensor] = dict(tensors)
    for name in ("logit_scale", "logit_bias"):
        shape(tensors, name)
        state[name] = tensors[name].reshape(())
    state["vision.pooling.query"] = tensors["vision.pooling.query"].reshape(-1)
    width = shape(tensors, "vision.positions", 2)[1]
    # The attention-pooling head is an `nn.MultiheadAttention`, which fuses queries with keys and values. Its query is a
    # learned vector, so we keep queries apart.
    for kind in ("weight", "bias"):
        whole = tensors[f"vision.pooling.in.{kind}"]
        state[f"vision.pooling.q.{kind}"], state[f"vision.pooling.kv.{kind}"] = whole[:width], whole[width:]
        del state[f"vision.pooling.in.{kind}"]
    fuse_qkv(state, tensors)
    patch = shape(tensors, "vision.patches.weight", 4)[-1]
    vocab = shape(tensors, "text.tokens.weight", 2)[0]
    settings = CLIPConfig(
        image_size=patch * square(shape(tensors, "vision.positions")[0])[0],
        patch_size=patch,
        vision=_tower(tensors, "vision", config.get("vision_config") or {}),
        text=_tower(tensors, "text", config.get("text_config") or {}),
        text_vocab=vocab,
        text_length=shape(tensors, "text.positions", 2)[0],
        embed_dim=shape(tensors, "text.projection.weight", 2)[0],
        eos_id=1,  # unused: SigLIP pools the last position
        mean=tuple(pixels.get("mean", (0.5,) * 3)),
        std=tuple(pixels.get("std", (0.5,) * 3)),
        towers="siglip",
        sigmoid=True,
    )
    return Published(*_FAMILY, settings, state, dropped, _NAMES)


def _tower(tensors: Mapping[str, Tensor], tower: str, config: Mapping[str, Any]) -> TransformerConfig:
    width = shape(tensors, f"{tower}.positions", 2)[1]
    # transformers leaves out of config.json what equals the defaults of its class, so these are its defaults
    heads, activation = config.get("num_attention_heads", 12), config.get("hidden_act", "gelu_pytorch_tanh")
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise ValueError(f"its {tower} width is {width} and its config.json says {heads} heads, which do not divide it")
    if activation not in _ACTIVATIONS:
        raise ValueError(f"its activation {activation!r} is not supported")
    # SigLIP's towers have this epsilon built in (CLIP's is 1e-5)
    if config.get("layer_norm_eps", 1e-6) != 1e-6:
        raise ValueError(f"its {tower} tower has layer_norm_eps {config['layer_norm_eps']}, expected 1e-6")
    return TransformerConfig(
        width=width,
        depth=count(tensors, rf"{tower}\.transformer\.blocks\.(\d+)\."),
        heads=heads,
        hidden=shape(tensors, f"{tower}.transformer.blocks.0.feed_forward.up.weight")[0],
        feed_forward=_ACTIVATIONS[activation],
    )
