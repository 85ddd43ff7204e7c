"""Published CLIPs with a vision transformer: OpenAI (TorchScript or state dict), Hugging Face, open_clip; SigLIPs.

OpenAI and open_clip use the same tensor names; Hugging Face has others, with separate queries, keys and values.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dalle.checkpoints.lazy_tensor import LazyTensor
from dalle.checkpoints.published import siglip
from dalle.checkpoints.published.files import read_state
from dalle.checkpoints.published.hf_towers import TOWER_RULES
from dalle.checkpoints.published.state import SHAPE_ERRORS, Published, concat_lazy, count, rename_tensors, shape, square
from dalle.models.clip import INITIAL_TEMPERATURE, CLIPConfig
from dalle.models.transformer_config import FeedForwardKind, TransformerConfig
from dalle.text_tokenizers import CLIPTokenizer, SigLIPTokenizer, TextTokenizer

_OPENAI = ("OpenAI's CLIP", "MIT (github.com/openai/CLIP, LICENSE)")
_OPEN_CLIP = ("a CLIP of open_clip", "that of whoever trained it (the code: MIT, github.com/mlfoundations/open_clip)")
_HUGGING_FACE = ("a CLIP of Hugging Face", "see its repository (OpenAI's: MIT)")
# Vision width -> heads, where heads are not 64 channels wide: ViT-H/14, g/14 and bigG/14 of open_clip.
_VISION_HEADS = {1280: 16, 1408: 16, 1664: 16}
# OpenAI's names give the text tower no prefix, and fuse queries, keys and values as `in_proj`.
_TOWERS = ((r"visual\.transformer", "vision"), (r"transformer", "text"))
_NAMES = (
    (r"visual\.conv1\.weight", "vision.patches.weight"),
    (r"visual\.class_embedding", "vision.class_token"),
    (r"visual\.positional_embedding", "vision.positions"),
    (r"visual\.ln_pre\.(.+)", r"vision.norm.\1"),
    (r"visual\.ln_post\.(.+)", r"vision.transformer.norm.\1"),
    (r"visual\.proj", "vision.projection.weight"),
    (r"token_embedding\.weight", "text.tokens.weight"),
    (r"positional_embedding", "text.positions"),
    (r"ln_final\.(.+)", r"text.transformer.norm.\1"),
    (r"text_projection", "text.projection.weight"),
    (r"logit_scale", "logit_scale"),
    *(
        (rf"{tower}\.resblocks\.(\d+)\.{theirs}(.+)", rf"{ours_tower}.transformer.blocks.\1.{ours}\2")
        for tower, ours_tower in _TOWERS
        for theirs, ours in (
            (r"attn\.in_proj_", "attention.qkv."),
            (r"attn\.out_proj\.", "attention.out."),
            (r"ln_1\.", "attention_norm."),
            (r"ln_2\.", "feed_forward_norm."),
            (r"mlp\.c_fc\.", "feed_forward.up."),
            (r"mlp\.c_proj\.", "feed_forward.down."),
        )
    ),
)
_NAMES_HF = (
    (r"vision_model\.embeddings\.patch_embedding\.weight", "vision.patches.weight"),
    (r"vision_model\.embeddings\.class_embedding", "vision.class_token"),
    (r"vision_model\.embeddings\.position_embedding\.weight", "vision.positions"),
    (r"vision_model\.pre_layrnorm\.(.+)", r"vision.norm.\1"),
    (r"vision_model\.post_layernorm\.(.+)", r"vision.transformer.norm.\1"),
    (r"visual_projection\.weight", "vision.projection.weight"),
    (r"text_model\.embeddings\.token_embedding\.weight", "text.tokens.weight"),
    (r"text_model\.embeddings\.position_embedding\.weight", "text.positions"),
    (r"text_model\.final_layer_norm\.(.+)", r"text.transformer.norm.\1"),
    (r"text_projection\.weight", "text.projection.weight"),
    (r"logit_scale", "logit_scale"),
    *TOWER_RULES,
)
# Buffers, and constants that OpenAI's TorchScript archives store.
_DROPPED = r"input_resolution|context_length|vocab_size|(?:.*\.)?attn_mask|.*\.position_ids"
# Options of open_clip's config that are safe to ignore: sizes (read from the tensors), and others that only matter for
# architectures rejected elsewhere or in training. Any other option changes what the same tensors compute.
_IGNORED_OPTIONS = {
    "layers",
    "width",
    "head_width",
    "heads",
    "patch_size",
    "image_size",
    "context_length",
    "vocab_size",
}
_IGNORED_OPTIONS |= {
    "mlp_ratio",
    "patch_dropout",
    "timm_proj",
    "timm_pool",
    "timm_drop",
    "attn_pooler_queries",
    "attn_pooler_heads",
}
_IGNORED_OPTIONS |= {"hf_model_pretrained", "hf_proj_type", "hf_pooler_type", "eos_id"}
# Options with the only values that our CLIP implements.
_SUPPORTED = {"pos_embed_type": ("learnable",), "pool_type": ("tok", "argmax"), "proj_type": ("linear",)}
_ACTIVATIONS: dict[str, FeedForwardKind] = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def read_clip(source: Path, given: Mapping[str, Any] | None = None) -> Published:
    """Read a published CLIP.

    Args:
        source: the weight file, or a folder with it and its config.json or open_clip_config.json.
        given: what the source does not record: `feed_forward` ("quick_gelu" or "gelu"), `heads` of the image tower,
            `text_heads`.

    Raises:
        ValueError: it is not a CLIP, is damaged, or an option has to be given; one line that names the source.
    """
    try:
        published = read_state(source)
        if siglip.is_of(published):
            return _read_siglip(published, source, dict(given or {}))
        return _read(published, _settings(source), dict(given or {}))
    except ValueError as error:
        reason = str(error)
        raise ValueError(
            reason if str(source) in reason else f"{source} cannot be loaded as a CLIP: {reason}"
        ) from error
    except SHAPE_ERRORS as error:
        raise ValueError(f"{source} cannot be loaded as a CLIP: its tensors do not have the shapes of one") from error


def _read_siglip(published: dict[str, Tensor], source: Path, given: dict[str, Any]) -> Published:
    folder = source if source.is_dir() else source.parent
    if given:
        raise ValueError(f"{next(iter(given))} must not be given: the config.json of a SigLIP records it")
    return siglip.read(published, _json(folder / "config.json"), _normalization(folder))


def _read(published: dict[str, Tensor], settings: dict[str, Any], given: dict[str, Any]) -> Published:
    places = {
        "text": "text_model.embeddings.token_embedding.weight",
        "image": "vision_model.embeddings.class_embedding",
    }
    missing = next((tower for tower, name in places.items() if name not in published), None)
    hugging_face = any(name in published for name in places.values())
    if not hugging_face and "visual.layer1.0.conv1.weight" in published:
        raise ValueError(
            "its image tower is a ResNet, which is not supported: use one with a vision transformer, such as ViT-B/32"
        )
    archive = {"input_resolution", "context_length", "vocab_size"} <= set(published)
    tensors, dropped = rename_tensors(published, _NAMES_HF if hugging_face else _NAMES, _DROPPED)
    state: dict[str, Tensor | LazyTensor] = dict(tensors)
    if hugging_face:
        _fuse_qkv(state, tensors)
    else:
        # There the projections are parameters [C, E], applied as x @ W; `nn.Linear` stores the transpose.
        for name in ("vision.projection.weight", "text.projection.weight"):
            shape(tensors, name)
            state[name] = tensors[name].T
    if "logit_scale" in tensors:
        state["logit_scale"] = tensors["logit_scale"].reshape(())
    activation = _activation(settings, given, archive)
    options: dict[str, Any] = {name: tuple(settings[name]) for name in ("mean", "std") if name in settings}
    if hugging_face and missing is not None:
        options["missing"] = missing
        state.setdefault(
            "logit_scale", torch.tensor(math.log(1 / INITIAL_TEMPERATURE))
        )  # recorded with both towers only
    if options.get("missing") != "image":
        patch = shape(tensors, "vision.patches.weight")[-1]
        options["vision"] = _tower(tensors, "vision", activation, settings.get("heads"), given.get("heads"))
        options |= {"image_size": patch * square(shape(tensors, "vision.positions")[0] - 1)[0], "patch_size": patch}
        options["embed_dim"] = shape(state, "vision.projection.weight")[0]
    if options.get("missing") != "text":
        vocab = shape(tensors, "text.tokens.weight")[0]
        options["text"] = _tower(tensors, "text", activation, settings.get("text_heads"), given.get("text_heads"))
        # CLIP's end token has the highest id
        options |= {"text_vocab": vocab, "text_length": shape(tensors, "text.positions")[0], "eos_id": vocab - 1}
        options["embed_dim"] = shape(state, "text.projection.weight")[0]
    config = CLIPConfig(**options)
    names = _HUGGING_FACE if hugging_face else _OPENAI if archive else _OPEN_CLIP
    return Published(*names, config, state, dropped, _NAMES_HF if hugging_face else _NAMES)


def check_text_tokenizer(found: Published, words: TextTokenizer) -> None:
    """Check that a text tokenizer matches a CLIP.

    Raises:
        ValueError: it is of another kind, as ruCLIP's is, or has another vocabulary size.
    """
    kind = words.config.kind
    if found.config.towers == "siglip" and not isinstance(words, SigLIPTokenizer):
        raise ValueError(
            f"its text tokenizer is of the kind {kind}: give spiece.model of SigLIP, or tokenizer.model of SigLIP 2"
        )
    if found.config.towers == "clip" and not isinstance(words, CLIPTokenizer):
        raise ValueError(f"its text tokenizer is of the kind {kind}, as ruCLIP's, which is not supported: give CLIP's")
    if words.vocab_size != found.config.text_vocab:
        raise ValueError(
            f"it has {found.config.text_vocab:,} text tokens, its text tokenizer {words.vocab_size:,}: give "
            "the tokenizer it was trained with, unless it is of another family"
        )


def _fuse_qkv(state: dict[str, Tensor | LazyTensor], tensors: dict[str, Tensor]) -> None:
    """Concatenate separate query, key and value projections to the fused one."""
    for name in tensors:
        place, found, kind = name.partition(".attention.q.")
        if found:
            parts = [f"{place}.attention.{part}.{kind}" for part in "qkv"]
            for part in parts:
                shape(tensors, part)
                del state[part]
            state[f"{place}.attention.qkv.{kind}"] = concat_lazy(*(tensors[part] for part in parts))


def _tower(
    tensors: dict[str, Tensor], tower: str, activation: FeedForwardKind, recorded: int | None, given: Any
) -> TransformerConfig:
    width = shape(tensors, f"{tower}.positions")[1]
    known = _VISION_HEADS.get(width) if tower == "vision" else None
    heads = given or recorded or known or (width // 64 if width % 64 == 0 else None)
    option = "heads" if tower == "vision" else "text_heads"
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise ValueError(f"its number of {tower} attention heads is not recorded (width {width}): give {option}=NUMBER")
    return TransformerConfig(
        width=width,
        depth=count(tensors, rf"{tower}\.transformer\.blocks\.(\d+)\."),
        heads=heads,
        hidden=shape(tensors, f"{tower}.transformer.blocks.0.feed_forward.up.weight")[0],
        feed_forward=activation,
    )


def _activation(settings: dict[str, Any], given: dict[str, Any], archive: bool) -> FeedForwardKind:
    named = given.get("feed_forward") or settings.get("activation") or ("quick_gelu" if archive else None)
    if named not in _ACTIVATIONS:
        reason = "its kind of GELU is not recorded" if named is None else f"its activation {named!r} is not supported"
        raise ValueError(f"{reason}: give feed_forward=quick_gelu (OpenAI's) or feed_forward=gelu (most of LAION's)")
    return _ACTIVATIONS[str(named)]


def _settings(source: Path) -> dict[str, Any]:
    """Settings from the JSON files beside the weights that the tensors do not reveal."""
    folder = source if source.is_dir() else source.parent
    settings: dict[str, Any] = {}
    config = _json(folder / "config.json")
    kind = config.get("model_type", "clip")
    if kind not in ("clip", "clip_text_model", "clip_vision_model"):
        raise ValueError(f"{folder / 'config.json'} says model_type: {kind!r}, expected 'clip'")
    if kind != "clip":  # one tower alone
        heads = "text_heads" if kind == "clip_text_model" else "heads"
        settings[heads] = config.get("num_attention_heads", 8 if kind == "clip_text_model" else 12)
        settings["activation"] = config.get("hidden_act", "quick_gelu")
    if {"vision_config", "text_config"} <= set(config):
        vision, text = (config[part] or {} for part in ("vision_config", "text_config"))
        settings["heads"] = vision.get("num_attention_heads", 12)
        settings["text_heads"] = text.get("num_attention_heads", 8)
        settings["activation"] = vision.get("hidden_act", "quick_gelu")
        if text.get("hidden_act", "quick_gelu") != settings["activation"]:
            raise ValueError("its two towers have different activations, which is not supported: use another CLIP")
    settings |= _normalization(folder)
    ours = _json(folder / "open_clip_config.json")
    model = ours.get("model_cfg")
    if isinstance(model, dict):
        for part in ("vision_cfg", "text_cfg"):
            _check_open_clip(part, model.get(part) or {}, folder / "open_clip_config.json")
    if isinstance(model, dict) and not config:
        vision, text = (model.get(part) or {} for part in ("vision_cfg", "text_cfg"))
        width, head = vision.get("width"), vision.get("head_width", 64)
        settings["heads"] = width // head if isinstance(width, int) and isinstance(head, int) else None
        settings["text_heads"] = text.get("heads")
        settings["activation"] = "quick_gelu" if model.get("quick_gelu") else "gelu"
        settings |= {
            name: value for name, value in (ours.get("preprocess_cfg") or {}).items() if name in ("mean", "std")
        }
    return settings


def _normalization(folder: Path) -> dict[str, Any]:
    """The mean and standard deviation of image normalization, if the folder records them."""
    image = _json(folder / "preprocessor_config.json")
    names = (("mean", "image_mean"), ("std", "image_std"))
    return {ours: image[theirs] for ours, theirs in names if theirs in image}


def _check_open_clip(part: str, options: dict[str, Any], file: Path) -> None:
    """Check that all options of a tower are supported.

    Raises:
        ValueError: one is not.
    """
    for name, value in options.items():
        if name not in _IGNORED_OPTIONS and value and value not in _SUPPORTED.get(name, ()):
            raise ValueError(f"{file} says {part}.{name}: {value!r}, which is not supported")


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: download it again") from error
    return content if isinstance(content, dict) else {}
