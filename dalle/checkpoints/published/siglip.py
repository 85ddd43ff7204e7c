"""SigLIP and SigLIP 2 as Hugging Face (`SiglipModel`) and open_clip (timm's image tower) publish them; not NaFlex."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dalle.checkpoints.lazy_tensor import LazyTensor
from dalle.checkpoints.published.hf_towers import TOWER_RULES
from dalle.checkpoints.published.state import Published, count, fuse_qkv, rename_tensors, shape, square
from dalle.models.clip import CLIPConfig
from dalle.models.transformer_config import FeedForwardKind, TransformerConfig

_LICENSE = "see its repository (Google's: Apache-2.0)"
_SCALE = ((r"(logit_scale|logit_bias)", r"\1"),)
_NAMES_HF = (
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
    *_SCALE,
    *TOWER_RULES,
)
_TIMM_BLOCK, _OPEN_CLIP_BLOCK = r"visual\.trunk\.blocks\.(\d+)", r"text\.transformer\.resblocks\.(\d+)"
_NAMES_OPEN_CLIP = (
    (r"visual\.trunk\.patch_embed\.proj\.(.+)", r"vision.patches.\1"),
    (r"visual\.trunk\.pos_embed", "vision.positions"),
    (r"visual\.trunk\.norm\.(.+)", r"vision.transformer.norm.\1"),
    (r"visual\.trunk\.attn_pool\.latent", "vision.pooling.query"),
    (r"visual\.trunk\.attn_pool\.(q|kv|norm)\.(.+)", r"vision.pooling.\1.\2"),
    (r"visual\.trunk\.attn_pool\.proj\.(.+)", r"vision.pooling.out.\1"),
    (r"visual\.trunk\.attn_pool\.mlp\.fc1\.(.+)", r"vision.pooling.feed_forward.up.\1"),
    (r"visual\.trunk\.attn_pool\.mlp\.fc2\.(.+)", r"vision.pooling.feed_forward.down.\1"),
    (r"text\.token_embedding\.weight", "text.tokens.weight"),
    (r"text\.positional_embedding", "text.positions"),
    (r"text\.ln_final\.(.+)", r"text.transformer.norm.\1"),
    (r"text\.text_projection\.(.+)", r"text.projection.\1"),
    *_SCALE,
    *(
        (rf"{_TIMM_BLOCK}\.{theirs}\.(.+)", rf"vision.transformer.blocks.\1.{ours}.\2")
        for theirs, ours in (
            (r"attn\.qkv", "attention.qkv"),
            (r"attn\.proj", "attention.out"),
            ("norm1", "attention_norm"),
            ("norm2", "feed_forward_norm"),
            (r"mlp\.fc1", "feed_forward.up"),
            (r"mlp\.fc2", "feed_forward.down"),
        )
    ),
    (rf"{_OPEN_CLIP_BLOCK}\.attn\.in_proj_(.+)", r"text.transformer.blocks.\1.attention.qkv.\2"),
    *(
        (rf"{_OPEN_CLIP_BLOCK}\.{theirs}\.(.+)", rf"text.transformer.blocks.\1.{ours}.\2")
        for theirs, ours in (
            (r"attn\.out_proj", "attention.out"),
            ("ln_1", "attention_norm"),
            ("ln_2", "feed_forward_norm"),
            (r"mlp\.c_fc", "feed_forward.up"),
            (r"mlp\.c_proj", "feed_forward.down"),
        )
    ),
)
_ACTIVATIONS: dict[Any, FeedForwardKind] = {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
# Image towers that timm builds with the tanh approximation of GELU; its others compute it exactly
_TANH_IN_TIMM = {
    *("vit_base_patch32_siglip_256", "vit_large_patch16_siglip_512"),
    *(f"vit_so400m_patch16_siglip_{side}" for side in (256, 384, 512)),
    *(f"vit_giantopt_patch16_siglip_{side}" for side in (256, 384)),
}
# Width -> heads of timm's SigLIPs where they are not 64 channels wide: So400m and giantopt
_TIMM_HEADS = {1152: 16, 1536: 16}


def is_of(names: Mapping[str, Any]) -> bool:
    """Whether these tensor names are those of a SigLIP."""
    return "vision_model.head.probe" in names or is_open_clip(names)


def is_open_clip(names: Mapping[str, Any]) -> bool:
    """Whether these tensor names are those of a SigLIP of open_clip, or of another model with timm's pooling."""
    return "visual.trunk.attn_pool.latent" in names


def read(published: Mapping[str, Tensor], config: Mapping[str, Any], pixels: Mapping[str, Any]) -> Published:
    """Convert a SigLIP of Hugging Face to our CLIP.

    Args:
        published: its tensors.
        config: its config.json with heads and activation; {} assumes those of the paper's Base model.
        pixels: `mean` and `std` of image normalization; {} assumes 0.5.

    Raises:
        ValueError: a tensor is missing, or the architecture is not supported.
    """
    if len(published["vision_model.embeddings.patch_embedding.weight"].shape) != 4:
        raise ValueError("it takes images of any shape (NaFlex), which is not supported: use one of fixed resolution")
    tensors, dropped = rename_tensors(published, _NAMES_HF, r".*\.position_ids")
    state = dict(tensors) | _scale_and_bias(tensors)
    width = shape(tensors, "vision.positions", 2)[1]
    # The attention-pooling head is an `nn.MultiheadAttention`, which fuses queries with keys and values. Its query is a
    # learned vector, so we keep queries apart.
    for kind in ("weight", "bias"):
        whole = tensors[f"vision.pooling.in.{kind}"]
        state[f"vision.pooling.q.{kind}"], state[f"vision.pooling.kv.{kind}"] = whole[:width], whole[width:]
        del state[f"vision.pooling.in.{kind}"]
    fuse_qkv(state, tensors)
    towers = {tower: _hf_tower(tensors, tower, config.get(f"{tower}_config") or {}) for tower in ("vision", "text")}
    return _published("a SigLIP of Hugging Face", tensors, state, towers, pixels, dropped, _NAMES_HF)


def read_open_clip(published: Mapping[str, Tensor], config: Mapping[str, Any], pixels: Mapping[str, Any]) -> Published:
    """Convert a SigLIP of open_clip to our CLIP.

    GELU is the one that open_clip and timm compute, exact or approximate, which differs between the models.

    Args:
        published: its tensors.
        config: `model_cfg` of its open_clip_config.json.
        pixels: as for `read`.

    Raises:
        ValueError: a tensor is missing or of another architecture, or its config is not there.
    """
    vision, text = (config.get(part) or {} for part in ("vision_cfg", "text_cfg"))
    if not {"heads", "width"} <= set(text) or "timm_model_name" not in vision:
        raise ValueError("its heads and kinds of GELU are not recorded: put its open_clip_config.json beside it")
    tensors, dropped = rename_tensors(published, _NAMES_OPEN_CLIP, recognized=True)
    if not text.get("no_causal_mask") or text.get("pool_type") != "last":
        raise ValueError("its text tower is not SigLIP's (no_causal_mask, pool_type: last), which is not supported")
    state = dict(tensors) | _scale_and_bias(tensors)
    shape(tensors, "vision.positions", 3)
    tensors["vision.positions"] = state["vision.positions"] = tensors["vision.positions"][0]
    width = shape(tensors, "vision.positions", 2)[1]
    named = "tanh" in (text.get("act_kwargs") or {}).values()
    tanh = {"vision": vision["timm_model_name"] in _TANH_IN_TIMM, "text": named}
    heads = {"vision": _TIMM_HEADS.get(width, width // 64), "text": text["heads"]}
    towers = {name: _tower(tensors, name, heads[name], "gelu_tanh" if tanh[name] else "gelu") for name in heads}
    return _published("a SigLIP of open_clip", tensors, state, towers, pixels, dropped, _NAMES_OPEN_CLIP)


def _scale_and_bias(tensors: Mapping[str, Tensor]) -> dict[str, Tensor | LazyTensor]:
    """Those of the loss, as scalars: Hugging Face has vectors of one number."""
    names = ("logit_scale", "logit_bias")
    for name in names:
        shape(tensors, name)
    return {name: tensors[name].reshape(()) for name in names}


def _published(
    family: str,
    tensors: Mapping[str, Tensor],
    state: dict[str, Tensor | LazyTensor],
    towers: Mapping[str, TransformerConfig],
    pixels: Mapping[str, Any],
    dropped: list[str],
    rules: tuple[tuple[str, str], ...],
) -> Published:
    state["vision.pooling.query"] = tensors["vision.pooling.query"].reshape(-1)
    patch = shape(tensors, "vision.patches.weight", 4)[-1]
    settings = CLIPConfig(
        image_size=patch * square(shape(tensors, "vision.positions")[0])[0],
        patch_size=patch,
        vision=towers["vision"],
        text=towers["text"],
        text_vocab=shape(tensors, "text.tokens.weight", 2)[0],
        text_length=shape(tensors, "text.positions", 2)[0],
        embed_dim=shape(tensors, "text.projection.weight", 2)[0],
        eos_id=1,  # unused: SigLIP pools the last position
        mean=tuple(pixels.get("mean", (0.5,) * 3)),
        std=tuple(pixels.get("std", (0.5,) * 3)),
        towers="siglip",
        sigmoid=True,
    )
    return Published(family, _LICENSE, settings, state, dropped, rules)


def _hf_tower(tensors: Mapping[str, Tensor], tower: str, config: Mapping[str, Any]) -> TransformerConfig:
    # transformers leaves out of config.json what equals the defaults of its class, so these are its defaults
    heads, activation = config.get("num_attention_heads", 12), config.get("hidden_act", "gelu_pytorch_tanh")
    if activation not in _ACTIVATIONS:
        raise ValueError(f"its activation {activation!r} is not supported")
    # SigLIP's towers have this epsilon built in (CLIP's is 1e-5)
    if config.get("layer_norm_eps", 1e-6) != 1e-6:
        raise ValueError(f"its {tower} tower has layer_norm_eps {config['layer_norm_eps']}, expected 1e-6")
    return _tower(tensors, tower, heads, _ACTIVATIONS[activation])


def _tower(tensors: Mapping[str, Tensor], tower: str, heads: Any, activation: FeedForwardKind) -> TransformerConfig:
    width = shape(tensors, f"{tower}.positions", 2)[1]
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise ValueError(f"its {tower} width is {width} and its config says {heads} heads, which do not divide it")
    return TransformerConfig(
        width=width,
        depth=count(tensors, rf"{tower}\.transformer\.blocks\.(\d+)\."),
        heads=heads,
        hidden=shape(tensors, f"{tower}.transformer.blocks.0.feed_forward.up.weight")[0],
        feed_forward=activation,
    )
