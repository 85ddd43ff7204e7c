"""The tensors that a config.json declares, with shapes but without memory: to plan before gigabytes are fetched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dalle.checkpoints.published import chameleon, emu3, janus, liquid, llama, simplear

# Of LlamaConfig and GemmaConfig of transformers, where a config.json does not say
_LLAMA = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
_LLAMA |= {"vocab_size": 32_000}
_GEMMA = {"hidden_size": 3072, "intermediate_size": 24_576, "num_hidden_layers": 28, "num_attention_heads": 16}
_GEMMA |= {"vocab_size": 256_000, "head_dim": 256}
_EMU35_WORDS = 200_000  # more ids than an Emu3 has, and fewer than an Emu3.5


def declared(settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a language model that draws, without an image tokenizer.

    Args:
        settings: content of config.json.

    Returns:
        Tensors by their published names, all of whose elements are one number in memory.

    Raises:
        ValueError: it is of another family.
    """
    kind = settings.get("model_type")
    if kind in janus.MODEL_TYPES and ("gen_head_config" in settings or "vq_config" in settings):
        own = _LLAMA | llama.section(settings, "language_config", "text_config")
        shapes = _blocks(own, "language_model.model.") | _janus(settings, own["hidden_size"])
    elif kind in emu3.MODEL_TYPES:
        own = _LLAMA | dict(llama.section(settings, "text_config") or settings)
        shapes = _blocks(own, "model.", rms_norms=own["vocab_size"] > _EMU35_WORDS) | _head(own)
    elif kind == chameleon.MODEL_TYPE:
        own = _LLAMA | dict(settings)
        shapes = _blocks(own, "model.", layer_norms=True) | _head(own)
    elif kind == liquid.MODEL_TYPE:
        shapes = _blocks(_GEMMA | dict(settings), "model.")
    elif kind == simplear.MODEL_TYPE:
        own = _LLAMA | dict(settings)
        shapes = _blocks(own, "model.", biases=True)
        shapes |= {} if settings.get("tie_word_embeddings", True) else _head(own)
    else:
        raise ValueError(f"its config.json says model_type {kind!r}, which is no language model that draws")
    return {name: torch.ones(()).expand(shape) for name, shape in shapes.items()}


_Shapes = dict[str, tuple[int, ...]]


def _blocks(
    own: Mapping[str, Any], prefix: str, *, biases: bool = False, rms_norms: bool = False, layer_norms: bool = False
) -> _Shapes:
    """Shapes of embedding, blocks and last norm in Hugging Face's layout, with `prefix` in front of their names."""
    width, heads = own["hidden_size"], own["num_attention_heads"]
    kept = own.get("num_key_value_heads") or heads
    head = own.get("head_dim") or width // heads
    rows = {"q": heads * head, "k": kept * head, "v": kept * head}
    shapes: _Shapes = {f"{prefix}embed_tokens.weight": (own["vocab_size"], width), f"{prefix}norm.weight": (width,)}
    for layer in range(own["num_hidden_layers"]):
        place = f"{prefix}layers.{layer}."
        for part, count in rows.items():
            shapes[f"{place}self_attn.{part}_proj.weight"] = (count, width)
            if biases:
                shapes[f"{place}self_attn.{part}_proj.bias"] = (count,)
        shapes[f"{place}self_attn.o_proj.weight"] = (width, heads * head)
        if rms_norms:
            shapes |= {f"{place}self_attn.{part}_norm.weight": (head,) for part in "qk"}
        if layer_norms:
            for part, count in (("q", heads), ("k", kept)):
                shapes |= {f"{place}self_attn.{part}_norm.{leaf}": (count, head) for leaf in ("weight", "bias")}
        for part in ("gate", "up"):
            shapes[f"{place}mlp.{part}_proj.weight"] = (own["intermediate_size"], width)
        shapes[f"{place}mlp.down_proj.weight"] = (width, own["intermediate_size"])
        shapes |= {f"{place}{norm}.weight": (width,) for norm in ("input_layernorm", "post_attention_layernorm")}
    return shapes


def _head(own: Mapping[str, Any]) -> _Shapes:
    return {"lm_head.weight": (own["vocab_size"], own["hidden_size"])}


def _janus(settings: Mapping[str, Any], width: int) -> _Shapes:
    """The parts that read and write image codes, by DeepSeek's names whatever the layout."""
    images = llama.section(settings, "vq_config")  # transformers'
    head = llama.section(llama.section(settings, "gen_head_config"), "params")
    aligner = llama.section(llama.section(settings, "gen_aligner_config"), "params")
    codes = images.get("num_embeddings") or head.get("image_token_size", 16_384)
    channels = images.get("embed_dim") or aligner.get("input_dim", 8)
    layers = {
        "gen_aligner.layers.0": (width, channels),
        "gen_aligner.layers.2": (width, width),
        "gen_head.output_mlp_projector": (width, width),
        "gen_head.vision_head": (codes, width),
    }
    weights = {f"{name}.weight": shape for name, shape in layers.items()}
    return (
        weights
        | {f"{name}.bias": shape[:1] for name, shape in layers.items()}
        | {"gen_embed.weight": (codes, channels)}
    )
