"""Decoder blocks of Llama's kind (arXiv 2302.13971), and what else language models that draw have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dalle.checkpoints.lazy_tensor import LazyTensor
from dalle.checkpoints.published.files import read_json
from dalle.checkpoints.published.heads import deinterleave, heads_of
from dalle.checkpoints.published.state import Published, concat_lazy, count, derived, published_name, shape
from dalle.generation.options import SamplingConfig
from dalle.image_tokenizers import ImageCodes
from dalle.models.transformer_config import FeedForwardKind, TransformerConfig
from dalle.text_tokenizers import JSONTokenizer

SETTINGS = "config.json"
TEXT_LENGTH = 256
"""Longest prompt of a language model that draws, in tokens; longer ones are cut."""
_BLOCK = r"transformer.blocks.\1."
_HEAD_WIDTH = 128  # of all Llamas from 2048 channels on
_EPS, _BASE = 1e-6, 10_000.0  # what LlamaConfig has where a config.json does not say
_ACTIVATIONS: dict[Any, FeedForwardKind] = {"silu": "swiglu"}


@dataclass(frozen=True)
class Files:
    """The files of a language model.

    Attributes:
        source: file or folder that the user gave.
        folder: where its text tokenizer and its config.json are.
        tensors: tensors by their published names.
        settings: content of config.json; {} if there is none.
        given: the user's options.
    """

    source: Path
    folder: Path
    tensors: dict[str, Tensor]
    settings: dict[str, Any]
    given: dict[str, Any]


@dataclass(frozen=True)
class LanguageModel:
    """A language model that draws, with its text tokenizer.

    Attributes:
        model: the transformer.
        text_tokenizer: with the prompt of its family.
        sampling: its project's default sampling options.
        image_tokenizer: if it is in the same files.
        codes: what its image codes are, and where their image tokenizer is published.
    """

    model: Published
    text_tokenizer: JSONTokenizer
    sampling: SamplingConfig
    codes: ImageCodes
    image_tokenizer: Published | None = None


@dataclass(frozen=True)
class Blocks:
    """How a family's blocks differ from Llama's.

    Attributes:
        rules: renaming rules of the whole family, for messages.
        activations: names of activations in config.json, and ours; None there means that it does not say.
        head_width: channels of a head where config.json does not say; None: width / heads.
        interleaved: whether neighboring channels are rotated together, as in Meta's own layout.
        eps: added to the variance in norms where config.json does not say.
        rope_base: base of the rotary positions where config.json does not say.
    """

    rules: Sequence[tuple[str, str]]
    activations: Mapping[Any, FeedForwardKind] = field(default_factory=lambda: _ACTIVATIONS | {None: "swiglu"})
    head_width: int | None = None
    interleaved: bool = False
    eps: float = _EPS
    rope_base: float = _BASE


def rules(prefix: str, *, biases: bool = False) -> tuple[tuple[str, str], ...]:
    """Renaming rules for the tensors under `prefix`, a pattern, to ours before `fuse`.

    Args:
        prefix: what is in front of the blocks.
        biases: whether queries, keys and values have biases, as Qwen2's.
    """
    layer = rf"{prefix}\.layers\.(\d+)\."
    more = ((rf"{layer}self_attn\.([qkv])_proj\.bias", _BLOCK + r"attention.\2_bias"),) if biases else ()
    return (
        *more,
        (rf"{prefix}\.embed_tokens\.weight", "text_embedding.weight"),
        (rf"{layer}self_attn\.([qkv])_proj\.weight", _BLOCK + r"attention.\2"),
        (rf"{layer}self_attn\.o_proj\.weight", _BLOCK + "attention.out.weight"),
        (rf"{layer}mlp\.(gate|up|down)_proj\.weight", _BLOCK + r"feed_forward.\2"),
        (rf"{layer}input_layernorm\.weight", _BLOCK + "attention_norm.weight"),
        (rf"{layer}post_attention_layernorm\.weight", _BLOCK + "feed_forward_norm.weight"),
        (rf"{prefix}\.norm\.weight", "transformer.norm.weight"),
    )


def take(tensors: Mapping[str, Tensor], name: str, names: Sequence[tuple[str, str]]) -> Tensor:
    """A tensor by our name.

    Raises:
        ValueError: it is missing; the message has the published name, by the rules `names`.
    """
    if name not in tensors:
        raise ValueError(f"it has no tensor {published_name(name, names) or name}: it is incomplete")
    return tensors[name]


def word_count(published: Mapping[str, Tensor]) -> int:
    """The number of ids that a model's text embedding has rows for, by its published names.

    Raises:
        ValueError: there is no such tensor.
    """
    ends = ("embed_tokens.weight", "tok_embeddings.weight")
    name = next((name for name in published if name.endswith(ends)), ends[0])
    return shape(published, name, 2)[0]


def fuse(
    tensors: Mapping[str, Tensor], settings: Mapping[str, Any], given: Mapping[str, Any], blocks: Blocks
) -> tuple[dict[str, Tensor | LazyTensor], TransformerConfig, float]:
    """Fuse what our blocks have in one matrix: queries, keys and values; gate and up.

    Args:
        tensors: tensors by the names that `rules` gives.
        settings: the language model's part of config.json, perhaps without some entries.
        given: the user's options, perhaps with `heads`.
        blocks: how the family differs from Llama.

    Returns:
        Tensors by our names, the transformer's config, and the base of its rotary positions.

    Raises:
        ValueError: a tensor is missing or has another shape, or the config asks for what is not supported.
    """
    width = take(tensors, "text_embedding.weight", blocks.rules).shape[-1]
    depth = count(tensors, r"transformer\.blocks\.(\d+)\.")
    # Rows of queries, rows of keys
    inner, kept = (take(tensors, f"transformer.blocks.0.attention.{p}", blocks.rules).shape[0] for p in "qk")
    heads, head = _heads(inner, settings, given, blocks)
    biased = any(name.endswith("attention.q_bias") for name in tensors)
    state: dict[str, Tensor | LazyTensor] = dict(tensors)
    for layer in range(depth):
        place = f"transformer.blocks.{layer}."
        q, k, v, gate, up, down = (
            take(tensors, place + part, blocks.rules)
            for part in (*(f"attention.{p}" for p in "qkv"), *(f"feed_forward.{p}" for p in ("gate", "up", "down")))
        )
        # The same tensors under their fused names follow
        for part in (
            "attention.q",
            "attention.k",
            "attention.v",
            *(f"feed_forward.{p}" for p in ("gate", "up", "down")),
        ):
            del state[place + part]
        if k.shape != v.shape or not k.shape[0] or k.shape[0] % head or q.shape[0] % k.shape[0]:
            shapes = f"queries {list(q.shape)}, keys {list(k.shape)}, values {list(v.shape)}"
            raise ValueError(f"layer {layer} has {shapes}, which are not whole heads of {head} channels")
        state[f"{place}attention.qkv.weight"] = (
            _half_split(q, k, v, head) if blocks.interleaved else concat_lazy(q, k, v)
        )
        if biased:
            parts = [f"{place}attention.{p}_bias" for p in "qkv"]
            state[f"{place}attention.qkv.bias"] = concat_lazy(*(take(tensors, part, blocks.rules) for part in parts))
            for part in parts:
                del state[part]
        state[f"{place}feed_forward.up.weight"] = concat_lazy(gate, up)
        state[f"{place}feed_forward.down.weight"] = down
    config = TransformerConfig(
        width=width,
        depth=depth,
        heads=heads,
        kv_heads=None if kept == inner else kept // head,
        head_channels=None if heads * head == width else head,
        hidden=tensors["transformer.blocks.0.feed_forward.gate"].shape[0],
        feed_forward=_activation(settings, blocks),
        norm="rms",
        # Hugging Face's name, Meta's name
        norm_eps=_number("rms_norm_eps", settings.get("rms_norm_eps", settings.get("norm_eps", blocks.eps))),
        biases="qkv" if biased else "none",
    )
    return state, config, _rope_base(settings, blocks.rope_base)


def read_settings(file: Path) -> dict[str, Any]:
    """The content of a config.json; {} if there is none.

    Raises:
        ValueError: it is damaged.
    """
    return read_json(file) if file.is_file() else {}


def section(settings: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """The first of these parts of a config.json that is there; {} if none is."""
    return next((dict(part) for name in names if isinstance(part := settings.get(name), dict)), {})


def grid_rows(given: Mapping[str, Any], rows: object) -> int:
    """The rows of image tokens: as given, else `rows`.

    Raises:
        ValueError: it is not a whole number above 0.
    """
    found = given.get("grid", rows)
    if not isinstance(found, int) or found < 1:
        raise ValueError(f"grid is {found!r}; give its rows of image tokens, such as grid=24")
    return found


def _heads(inner: int, settings: Mapping[str, Any], given: Mapping[str, Any], blocks: Blocks) -> tuple[int, int]:
    """The number of heads and the channels of each, of `inner` channels in all."""
    # Queries need not be as wide as the model (Gemma): heads are counted from their width
    width = settings.get("head_dim") or blocks.head_width or _HEAD_WIDTH
    known = {inner: inner // width} if isinstance(width, int) and inner % width == 0 else {}
    for name in ("num_attention_heads", "n_heads"):
        if isinstance(settings.get(name), int):
            known = {inner: settings[name]}
    heads = heads_of(inner, known, given)
    return heads, inner // heads


def _half_split(q: Tensor, k: Tensor, v: Tensor, head: int) -> LazyTensor:
    """Queries, keys and values [3 H D, C], the first two from interleaved to half-split rotary channels."""

    def make() -> Tensor:
        order = deinterleave(head)
        # Values stay as they are: they are not rotated
        turned = (part.unflatten(0, (-1, head))[:, order].flatten(0, 1) for part in (q, k))
        return torch.cat((*turned, v))

    return derived((q, k, v), torch.Size((q.shape[0] + k.shape[0] + v.shape[0], *q.shape[1:])), make)


def _activation(settings: Mapping[str, Any], blocks: Blocks) -> FeedForwardKind:
    name = settings.get("hidden_activation") or settings.get("hidden_act")
    if name not in blocks.activations:
        expected = ", ".join(str(one) for one in blocks.activations if one is not None)
        raise ValueError(f"its activation is {name!r}, which is not supported: expected {expected}")
    return blocks.activations[name]


def _rope_base(settings: Mapping[str, Any], base: float) -> float:
    """The base of the rotary positions; newer files have it in a section with the kind of scaling.

    Raises:
        ValueError: positions are scaled.
    """
    rope = section(settings, "rope_parameters", "rope_scaling")
    kind = rope.get("rope_type", rope.get("type", "default"))
    # Scaled positions (YaRN, dynamic, ...) turn by other angles: ignored, they give plausible and wrong images
    if kind != "default":
        raise ValueError(f"its rotary positions are scaled ({kind}), which is not supported")
    return _number("rope_theta", rope.get("rope_theta", settings.get("rope_theta", base)))


def _number(name: str, found: object) -> float:
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise ValueError(f"its config.json says {name} {found!r:.40}: it must be a number")
    return float(found)
