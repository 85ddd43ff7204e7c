"""Settings beside the weights of published CLIPs: config.json, preprocessor_config.json, open_clip_config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
# Models of one tower in transformers -> what their number of heads is called here
_SINGLE = {"clip_vision_model": "heads", "clip_text_model": "text_heads"}
# Options with the only values that our CLIP implements.
_SUPPORTED = {"pos_embed_type": ("learnable",), "pool_type": ("tok", "argmax"), "proj_type": ("linear",)}


def read_settings(source: Path) -> dict[str, Any]:
    """Settings from the JSON files beside the weights that the tensors do not reveal.

    Args:
        source: the weight file, or its folder.

    Returns:
        As far as they are recorded `heads`, `text_heads`, `activation`, `mean`, `std`, and `text_cfg` of open_clip.

    Raises:
        ValueError: a file is not valid JSON, or an option is not supported.
    """
    folder = source if source.is_dir() else source.parent
    settings: dict[str, Any] = {}
    config = read_json(folder / "config.json")
    kind = config.get("model_type", "clip")
    if kind in _SINGLE:  # one tower, whose options are not in a section
        # What transformers leaves out equals the defaults of its class
        settings[_SINGLE[kind]] = config.get("num_attention_heads", 8 if kind == "clip_text_model" else 12)
        settings["activation"] = config.get("hidden_act", "quick_gelu")
    elif kind != "clip":
        raise ValueError(f"{folder / 'config.json'} says model_type: {kind!r}, expected 'clip'")
    if {"vision_config", "text_config"} <= set(config):
        vision, text = (config[part] or {} for part in ("vision_config", "text_config"))
        # transformers leaves out of config.json what equals the defaults of its class, so these are its defaults
        settings["heads"] = vision.get("num_attention_heads", 12)
        settings["text_heads"] = text.get("num_attention_heads", 8)
        settings["activation"] = vision.get("hidden_act", "quick_gelu")
        if text.get("hidden_act", "quick_gelu") != settings["activation"]:
            raise ValueError("its two towers have different activations, which is not supported: use another CLIP")
    settings |= normalization(folder)
    ours = read_json(folder / "open_clip_config.json")
    model = ours.get("model_cfg")
    if isinstance(model, dict):
        for part in ("vision_cfg", "text_cfg"):
            _check_open_clip(part, model.get(part) or {}, folder / "open_clip_config.json")
    # Where both files are there, transformers' one has been read above
    if isinstance(model, dict) and not config:
        vision, text = (model.get(part) or {} for part in ("vision_cfg", "text_cfg"))
        width, head = vision.get("width"), vision.get("head_width", 64)
        settings["heads"] = width // head if isinstance(width, int) and isinstance(head, int) else None
        settings["text_heads"] = text.get("heads")
        settings["text_cfg"] = text
        settings["activation"] = "quick_gelu" if model.get("quick_gelu") else "gelu"
        settings |= {
            name: value for name, value in (ours.get("preprocess_cfg") or {}).items() if name in ("mean", "std")
        }
    return settings


def normalization(folder: Path) -> dict[str, Any]:
    """The mean and standard deviation of image normalization, if the folder records them."""
    image = read_json(folder / "preprocessor_config.json")
    names = (("mean", "image_mean"), ("std", "image_std"))
    return {ours: image[theirs] for ours, theirs in names if theirs in image}


def _check_open_clip(part: str, options: dict[str, Any], file: Path) -> None:
    """Check that all options of a tower are supported.

    Raises:
        ValueError: one is not.
    """
    multilingual = "xlm-roberta" in str(options.get("hf_model_name"))  # what is read of it, its own reader checks
    for name, value in options.items():
        if name in ("hf_model_name", "hf_tokenizer_name") and multilingual:
            continue
        if name not in _IGNORED_OPTIONS and value and value not in _SUPPORTED.get(name, ()):
            raise ValueError(f"{file} says {part}.{name}: {value!r}, which is not supported")


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; {} if there is no such file or it holds something else.

    Raises:
        ValueError: it is not valid JSON.
    """
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: download it again") from error
    return content if isinstance(content, dict) else {}
