"""Published CLIPs: OpenAI (TorchScript or state dict), Hugging Face, open_clip, also one tower alone; SigLIPs.

OpenAI and open_clip use the same tensor names; Hugging Face has others, with separate queries, keys and values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from dalle.checkpoints.lazy_tensor import LazyTensor
from dalle.checkpoints.published import clip_resnet, siglip, xlm_roberta
from dalle.checkpoints.published.clip_settings import normalization, read_json, read_settings
from dalle.checkpoints.published.files import read_state
from dalle.checkpoints.published.hf_towers import TOWER_RULES
from dalle.checkpoints.published.others import reject_unsupported
from dalle.checkpoints.published.state import (
    SHAPE_ERRORS,
    Published,
    count,
    fuse_qkv,
    rename_tensors,
    shape,
    square,
)
from dalle.models.clip import CLIPConfig, initial_scale_and_bias
from dalle.models.transformer_config import FeedForwardKind, TransformerConfig
from dalle.text_tokenizers import CLIPTokenizer, SigLIPTokenizer, TextTokenizer, XLMRobertaTokenizer

_OPENAI = ("OpenAI's CLIP", "MIT (github.com/openai/CLIP, LICENSE)")
_OPEN_CLIP = ("a CLIP of open_clip", "that of whoever trained it (the code: MIT, github.com/mlfoundations/open_clip)")
_HUGGING_FACE = ("a CLIP of Hugging Face", "see its repository (OpenAI's: MIT)")
# Vision width -> heads, where heads are not 64 channels wide: ViT-H/14, g/14 and bigG/14 of open_clip.
_VISION_HEADS = {1280: 16, 1408: 16, 1664: 16}


# OpenAI's names give the text tower no prefix, and fuse queries, keys and values as `in_proj`.
def _blocks(theirs_tower: str, ours_tower: str) -> tuple[tuple[str, str], ...]:
    return tuple(
        (rf"{theirs_tower}\.resblocks\.(\d+)\.{theirs}(.+)", rf"{ours_tower}.transformer.blocks.\1.{ours}\2")
        for theirs, ours in (
            (r"attn\.in_proj_", "attention.qkv."),
            (r"attn\.out_proj\.", "attention.out."),
            (r"ln_1\.", "attention_norm."),
            (r"ln_2\.", "feed_forward_norm."),
            (r"mlp\.c_fc\.", "feed_forward.up."),
            (r"mlp\.c_proj\.", "feed_forward.down."),
        )
    )


_NAMES_IMAGE = (
    (r"visual\.conv1\.weight", "vision.patches.weight"),
    (r"visual\.class_embedding", "vision.class_token"),
    (r"visual\.positional_embedding", "vision.positions"),
    (r"visual\.ln_pre\.(.+)", r"vision.norm.\1"),
    (r"visual\.ln_post\.(.+)", r"vision.transformer.norm.\1"),
    (r"visual\.proj", "vision.projection.weight"),
    *_blocks(r"visual\.transformer", "vision"),
)
_NAMES_TEXT = (
    (r"token_embedding\.weight", "text.tokens.weight"),
    (r"positional_embedding", "text.positions"),
    (r"ln_final\.(.+)", r"text.transformer.norm.\1"),
    (r"text_projection", "text.projection.weight"),
    *_blocks("transformer", "text"),
)
_SCALE = ((r"logit_scale", "logit_scale"),)
_NAMES_HF = (
    (r"vision_model\.embeddings\.patch_embedding\.weight", "vision.patches.weight"),
    (r"vision_model\.embeddings\.class_embedding", "vision.class_token"),
    (r"vision_model\.embeddings\.position_embedding\.weight", "vision.positions"),
    (r"vision_model\.pre_layrnorm\.(.+)", r"vision.norm.\1"),  # sic
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
        ValueError: it is not a CLIP, is damaged, or an option has to be given, or has no use; one line that names the
            source.
    """
    try:
        if (source / "model_index.json").is_file():
            raise ValueError(
                f"{source} is a pipeline of diffusers, of several models, and no CLIP: give a CLIP with both towers, "
                "or its folder text_encoder or image_encoder, which has one"
            )
        published = read_state(source)
        if siglip.is_of(published):
            return _read_siglip(published, source, dict(given or {}))
        return _read(published, read_settings(source), dict(given or {}))
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
        raise ValueError(f"{next(iter(given))} must not be given: the config file of a SigLIP records it")
    if siglip.is_open_clip(published):
        config = read_json(folder / "open_clip_config.json")
        return siglip.read_open_clip(published, config.get("model_cfg") or {}, config.get("preprocess_cfg") or {})
    return siglip.read(published, read_json(folder / "config.json"), normalization(folder))


def _read(published: dict[str, Tensor], settings: dict[str, Any], given: dict[str, Any]) -> Published:
    hugging_face = any(name.startswith(("text_model.", "vision_model.")) for name in published)
    image = clip_resnet.NAMES if clip_resnet.is_of(published) else _NAMES_IMAGE
    text = xlm_roberta.NAMES if xlm_roberta.is_of(published) else _NAMES_TEXT
    rules = _NAMES_HF if hugging_face else (*image, *text, *_SCALE)
    _check_family(published, rules)
    dropped = "|".join((_DROPPED, clip_resnet.DROPPED, xlm_roberta.DROPPED))
    tensors, left_out = rename_tensors(published, rules, dropped)
    parts = {part: {n: t for n, t in tensors.items() if n.startswith(f"{part}.")} for part in ("vision", "text")}
    options: dict[str, Any] = {name: tuple(settings[name]) for name in ("mean", "std") if name in settings}
    state: dict[str, Tensor | LazyTensor] = {}
    for part, read in (("vision", _read_image), ("text", _read_text)):
        if parts[part]:
            own, found = read(parts[part], published, settings, given)
            state |= own
            options |= found
        else:
            options["missing"] = "image" if part == "vision" else "text"
    _check_given(given, published, parts)  # after what says more of damaged towers
    config = CLIPConfig(**options)
    if "logit_scale" in tensors:
        state["logit_scale"] = tensors["logit_scale"].reshape(())
    elif config.missing is not None:  # a tower alone has none, and compares nothing
        state["logit_scale"] = initial_scale_and_bias(config)[0]
    # Told by numbers among the tensors
    names = _HUGGING_FACE if hugging_face else _OPENAI if _is_archive(published) else _OPEN_CLIP
    return Published(*names, config, state, left_out, rules)


def _check_family(published: Mapping[str, Tensor], rules: Sequence[tuple[str, str]]) -> None:
    """Refuse tensors of which none belongs to a CLIP."""
    reject_unsupported(published)
    if not any(re.fullmatch(pattern, name) for name in published for pattern, _ in rules):
        shown = ", ".join(list(published)[:3])
        raise ValueError(f"it is no CLIP: of its {len(published):,} tensors ({shown} ...) none is one of a CLIP's")


def _check_given(given: dict[str, Any], published: Mapping[str, Tensor], parts: Mapping[str, Any]) -> None:
    """Refuse what the towers of this CLIP do not use."""
    used: list[str] = []
    if parts["vision"] and not clip_resnet.is_of(published):
        used += ["feed_forward", "heads"]
    if parts["text"]:
        used += ["text_heads"] if xlm_roberta.is_of(published) else ["feed_forward", "text_heads"]
    if unused := [name for name in given if name not in used]:
        names = ", ".join(dict.fromkeys(used)) or "no options"
        raise ValueError(f"{unused[0]} is of no use: this CLIP takes {names}")


def _read_image(
    tensors: dict[str, Tensor], published: Mapping[str, Tensor], settings: dict[str, Any], given: dict[str, Any]
) -> tuple[dict[str, Tensor | LazyTensor], dict[str, Any]]:
    """Tensors of the image tower, and the options of a config that describe it."""
    shape(tensors, "vision.projection.weight", 2)
    if clip_resnet.is_of(published):
        state, resnet, size = clip_resnet.convert(tensors)
        # A ResNet reduces images 32 times
        embed_dim = state["vision.projection.weight"].shape[0]
        return state, {"resnet": resnet, "image_size": size, "patch_size": 32, "embed_dim": embed_dim}
    state = _upright(tensors, "vision", published)
    patch = shape(tensors, "vision.patches.weight", 4)[-1]
    return state, {
        "image_size": patch * square(shape(tensors, "vision.positions")[0] - 1)[0],  # but for the class token
        "patch_size": patch,
        "vision": _tower(tensors, "vision", _activation(published, settings, given), settings, given),
        "embed_dim": state["vision.projection.weight"].shape[0],
    }


def _read_text(
    tensors: dict[str, Tensor], published: Mapping[str, Tensor], settings: dict[str, Any], given: dict[str, Any]
) -> tuple[dict[str, Tensor | LazyTensor], dict[str, Any]]:
    """Tensors of the text tower, and the options of a config that describe it."""
    vocab = shape(tensors, "text.tokens.weight", 2)[0]
    if "text.projection.weight" not in tensors:
        raise ValueError(
            "its text tower has no projection (a CLIPTextModel), so its embeddings cannot be compared with images: use "
            "a CLIPTextModelWithProjection, or a whole CLIP"
        )
    if xlm_roberta.is_of(published):
        state, text, length = xlm_roberta.convert(tensors, settings.get("text_cfg") or {}, given.get("text_heads"))
        # eos_id 2 is the end token of XLM-R
        options: dict[str, Any] = {"towers": "xlm_roberta", "text": text, "text_length": length, "eos_id": 2}
    else:
        state = _upright(tensors, "text", published)
        options = {
            "text": _tower(tensors, "text", _activation(published, settings, given), settings, given),
            "text_length": shape(tensors, "text.positions")[0],
            "eos_id": vocab - 1,  # CLIP's end token has the highest id
        }
    return state, options | {"text_vocab": vocab, "embed_dim": state["text.projection.weight"].shape[0]}


def _upright(tensors: dict[str, Tensor], part: str, published: Mapping[str, Tensor]) -> dict[str, Tensor | LazyTensor]:
    """Tensors of a transformer tower with fused queries, keys and values, and a projection as `nn.Linear` has it."""
    state: dict[str, Tensor | LazyTensor] = dict(tensors)
    if f"{part}_model.encoder.layers.0.self_attn.q_proj.weight" in published:
        fuse_qkv(state, tensors)
    else:
        # There the projections are parameters [C, E], applied as x @ W
        shape(tensors, f"{part}.projection.weight", 2)
        state[f"{part}.projection.weight"] = tensors[f"{part}.projection.weight"].T
    return state


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
    if found.config.towers == "xlm_roberta" and not isinstance(words, XLMRobertaTokenizer):
        raise ValueError(f"its text tokenizer is of the kind {kind}: give sentencepiece.bpe.model of XLM-R")
    if found.config.towers == "clip" and not isinstance(words, CLIPTokenizer):
        raise ValueError(f"its text tokenizer is of the kind {kind}, as ruCLIP's, which is not supported: give CLIP's")
    if words.vocab_size != found.config.text_vocab:
        raise ValueError(
            f"it has {found.config.text_vocab:,} text tokens, its text tokenizer {words.vocab_size:,}: give "
            "the tokenizer it was trained with, unless it is of another family"
        )


def _tower(
    tensors: dict[str, Tensor], tower: str, activation: FeedForwardKind, settings: dict[str, Any], given: dict[str, Any]
) -> TransformerConfig:
    width = shape(tensors, f"{tower}.positions")[1]
    known = _VISION_HEADS.get(width) if tower == "vision" else None
    option = "heads" if tower == "vision" else "text_heads"
    heads = given.get(option) or settings.get(option) or known or (width // 64 if width % 64 == 0 else None)
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise ValueError(f"its number of {tower} attention heads is not recorded (width {width}): give {option}=NUMBER")
    return TransformerConfig(
        width=width,
        depth=count(tensors, rf"{tower}\.transformer\.blocks\.(\d+)\."),
        heads=heads,
        hidden=shape(tensors, f"{tower}.transformer.blocks.0.feed_forward.up.weight")[0],
        feed_forward=activation,
    )


def _activation(published: Mapping[str, Tensor], settings: dict[str, Any], given: dict[str, Any]) -> FeedForwardKind:
    named = given.get("feed_forward") or settings.get("activation")
    named = named or ("quick_gelu" if _is_archive(published) else None)
    if named not in _ACTIVATIONS:
        reason = "its kind of GELU is not recorded" if named is None else f"its activation {named!r} is not supported"
        raise ValueError(f"{reason}: give feed_forward=quick_gelu (OpenAI's) or feed_forward=gelu (most of LAION's)")
    return _ACTIVATIONS[str(named)]


def _is_archive(published: Mapping[str, Tensor]) -> bool:
    """Whether tensors are those of a TorchScript archive of OpenAI, which has numbers among them."""
    return {"input_resolution", "context_length", "vocab_size"} <= set(published)
