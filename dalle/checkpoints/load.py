"""A source of weights to a module that is ready to use: our own folders and published files, local or of a hub.

Knows nothing of how the weights were trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from dalle import text_tokenizers
from dalle.checkpoints.hub import resolve
from dalle.checkpoints.model_folder import WEIGHTS, ModelFolder
from dalle.checkpoints.published import mindalle
from dalle.checkpoints.published.clip import check_words, read_clip
from dalle.checkpoints.published.image_tokenizers import read_image_tokenizer, sized
from dalle.checkpoints.published.models import read_model
from dalle.checkpoints.published.state import Published
from dalle.checkpoints.published.text_tokenizers import clip_text_tokenizer, read_text_tokenizer
from dalle.checkpoints.tensors import load_weights, skip_init
from dalle.config import from_dict
from dalle.image_tokenizers import ImageTokenizer, ImageTokenizerConfig, build
from dalle.models.autoregressive_prior import AutoregressivePrior, AutoregressivePriorConfig
from dalle.models.clip import CLIP, CLIPConfig
from dalle.models.dalle import DALLE, DALLEConfig
from dalle.models.diffusion_decoder import DecoderConfig, DiffusionDecoder
from dalle.models.diffusion_prior import DiffusionPrior, DiffusionPriorConfig
from dalle.models.upsampler import Upsampler, UpsamplerConfig
from dalle.text_tokenizers import TextTokenizer

_Module = TypeVar("_Module", bound=nn.Module)
_Device = str | torch.device
Source = str | Path | ModelFolder
"""Local file or folder, hub id, or a folder of ours that is open already."""

# stage in config.yaml -> what it is, and what loads it
_STAGES = {
    "text_tokenizer": ("a text tokenizer", "dalle.load_text_tokenizer"),
    "image_tokenizer": ("an image tokenizer", "dalle.load_image_tokenizer"),
    "clip": ("a CLIP", "dalle.load_clip"),
    "dalle": ("a DALL-E", "dalle.load_model"),
    "prior": ("a prior of unCLIP", "dalle.load_prior"),
    "diffusion": ("a decoder or an upsampler of unCLIP", "dalle.load_diffusion"),
    "unclip": ("an unCLIP with all its parts", "dalle.UnCLIP.from_pretrained"),
}


def load_text_tokenizer(source: Source, ends: bool = True) -> TextTokenizer:
    """Load a text tokenizer.

    Args:
        source: local file or folder, or hub id; ours, or as published (docs/checkpoints.md).
        ends: of published ones, whether rows begin and end with tokens (False for DALLE-pytorch).

    Raises:
        ValueError: nothing is there, it is something else, or its files are broken.
    """
    found = open_source(source)
    if isinstance(found, Path):
        return read_text_tokenizer(found, ends)
    _check_stage(found, "text_tokenizer")
    return text_tokenizers.load(found.path, found.config)


def load_image_tokenizer(
    source: Source, device: _Device = "cpu", dtype: torch.dtype | None = None, rows: int | None = None
) -> ImageTokenizer:
    """Load an image tokenizer in evaluation mode.

    Args:
        source: local file or folder, or hub id; ours, or as published (docs/checkpoints.md).
        device: where its weights go.
        dtype: floating type of its weights; None: float32.
        rows: of published ones, the rows of codes of its images; None: of those that it was trained on.

    Raises:
        ValueError: nothing is there, it is something else, or its weights do not fit its config.
    """
    folder = open_source(source)
    if isinstance(folder, Path):
        found = read_image_tokenizer(folder)
        return image_tokenizer_of(found if rows is None else sized(found, rows), str(source), device, dtype)
    _check_stage(folder, "image_tokenizer")
    with skip_init():
        module = build(from_dict(ImageTokenizerConfig, folder.config["model"], folder.origin))
    return _fill(module, folder, device, dtype)


def load_clip(source: Source, device: _Device = "cpu", dtype: torch.dtype | None = None, **given: Any) -> CLIP:
    """Load a CLIP in evaluation mode, with the text tokenizer from its folder, so that it takes strings.

    Args:
        source: local file or folder, or hub id; ours, or as published (docs/checkpoints.md).
        device: where its weights go.
        dtype: floating type of its weights; None: float32.
        given: what a published file does not tell: `feed_forward`, `heads`, `text_heads`.

    Raises:
        ValueError: nothing is there, it is something else, or its weights do not fit its config.
    """
    folder = open_source(source)
    if isinstance(folder, Path):
        found = read_clip(folder, given)
        words = clip_text_tokenizer(folder, found.config.towers)
        check_words(found, words)
        with skip_init():
            foreign = CLIP(found.config)
        found.check(foreign, str(source))
        module = load_weights(foreign, found.tensors, str(source), device, dtype)
        module.tokenizer = words
        return module
    if given:
        raise ValueError(f"{next(iter(given))} is not to be given: the config.yaml of {source} tells it")
    _check_stage(folder, "clip")
    with skip_init():
        module = CLIP(from_dict(CLIPConfig, folder.config["model"], folder.origin))
    _fill(module, folder, device, dtype)
    module.tokenizer = load_text_tokenizer(folder.component("text_tokenizer"))
    return module


def load_model(
    source: Source,
    family: str | None = None,
    device: _Device = "cpu",
    dtype: torch.dtype | None = None,
    **given: Any,
) -> DALLE:
    """Load a DALL-E transformer in evaluation mode; `dalle.TextToImage` loads its tokenizers too.

    Args:
        source: local file or folder, or hub id; ours, or as published (docs/checkpoints.md).
        family: of published files "mindalle", "rudalle", "dalle-pytorch" or "llamagen"; None finds out.
        device: where its weights go.
        dtype: floating type of its weights; None: float32.
        given: what a published file does not tell: `heads`, `convention` (ruDALL-E), `grid` (LlamaGen).

    Raises:
        ValueError: nothing is there, it is something else, or its weights do not fit its config.
    """
    folder = open_source(source, family)
    if isinstance(folder, Path):
        return model_of(read_model(folder, family, given).model, str(source), device, dtype)
    if given:
        raise ValueError(f"{next(iter(given))} is not to be given: the config.yaml of {source} tells it")
    _check_stage(folder, "dalle")
    with skip_init():
        module = DALLE(from_dict(DALLEConfig, folder.config["model"], folder.origin))
    _fill(module, folder, device, dtype).detect_sparse_masks()
    return module


def load_prior(
    source: Source, device: _Device = "cpu", dtype: torch.dtype | None = None
) -> DiffusionPrior | AutoregressivePrior:
    """Load a prior of unCLIP in evaluation mode; the CLIP that it was trained with is its component `clip`.

    Args:
        source: local folder or hub id, ours.
        device: where its weights go.
        dtype: floating type of its weights; None: float32.

    Raises:
        ValueError: nothing is there, it is something else, or its weights do not fit its config.
    """
    folder = open_source(source)
    if isinstance(folder, Path):
        raise ValueError(f"{source} has no config.yaml: give the folder of a prior made by train.py")
    _check_stage(folder, "prior")
    schema = DiffusionPriorConfig | AutoregressivePriorConfig
    with skip_init():
        module = prior_of(from_dict(schema, folder.config["model"], folder.origin))
    return _fill(module, folder, device, dtype)


def prior_of(config: DiffusionPriorConfig | AutoregressivePriorConfig) -> DiffusionPrior | AutoregressivePrior:
    """The prior that a config describes, of either kind."""
    return DiffusionPrior(config) if isinstance(config, DiffusionPriorConfig) else AutoregressivePrior(config)


def load_diffusion(
    source: Source, device: _Device = "cpu", dtype: torch.dtype | None = None
) -> DiffusionDecoder | Upsampler:
    """Load a decoder or an upsampler of unCLIP in evaluation mode; the CLIP of a decoder is its component `clip`.

    Args:
        source: local folder or hub id, ours.
        device: where its weights go.
        dtype: floating type of its weights; None: float32.

    Raises:
        ValueError: nothing is there, it is something else, or its weights do not fit its config.
    """
    folder = open_source(source)
    if isinstance(folder, Path):
        raise ValueError(f"{source} has no config.yaml: give the folder of a diffusion made by train.py")
    _check_stage(folder, "diffusion")
    with skip_init():
        module = diffusion_of(from_dict(DecoderConfig | UpsamplerConfig, folder.config["model"], folder.origin))
    return _fill(module, folder, device, dtype)


def diffusion_of(config: DecoderConfig | UpsamplerConfig) -> DiffusionDecoder | Upsampler:
    """The diffusion that a config describes, of either kind."""
    return DiffusionDecoder(config) if isinstance(config, DecoderConfig) else Upsampler(config)


def model_of(found: Published, source: str, device: _Device, dtype: torch.dtype | None) -> DALLE:
    """The transformer of published files."""
    with skip_init():
        module = DALLE(found.config)
    found.check(module, source)
    load_weights(module, found.tensors, source, device, dtype).detect_sparse_masks()
    return module


def image_tokenizer_of(found: Published, source: str, device: _Device, dtype: torch.dtype | None) -> ImageTokenizer:
    """The image tokenizer of published files."""
    with skip_init():
        module = build(found.config)
    found.check(module, source)
    return load_weights(module, found.tensors, source, device, dtype)


def is_ours(path: Path) -> bool:
    """Whether a folder is of the form that train.py and `convert` write (minDALL-E has a config.yaml of its own)."""
    return (path / "config.yaml").is_file() and not mindalle.is_there(path)


def open_source(source: Source, family: str | None = None) -> ModelFolder | Path:
    """What a source names: a folder of ours, opened; or the path of published files (always with a `family`).

    Raises:
        ValueError: nothing is there.
    """
    if isinstance(source, ModelFolder):
        return source
    path = resolve(source)
    return ModelFolder(path) if family is None and is_ours(path) else path


def _check_stage(folder: ModelFolder, stage: str) -> None:
    """Refuse a folder whose config.yaml does not say that it is of this stage."""
    found = folder.config.get("stage")
    wanted, _ = _STAGES[stage]
    if found in _STAGES and found != stage:
        what, loader = _STAGES[found]
        raise ValueError(
            f"{folder.path} holds {what}, expected {wanted}: load it with {loader}, or give another folder"
        )
    if found != stage:
        raise ValueError(
            f"{folder.origin} says stage: {found!r}, expected {stage!r}: give the folder of {wanted} made by train.py"
        )
    if not isinstance(folder.config.get("model"), dict):
        raise ValueError(f"{folder.origin} has no `model:` part: expected the architecture of {wanted} there")


def _fill(module: _Module, folder: ModelFolder, device: _Device, dtype: torch.dtype | None) -> _Module:
    return load_weights(module, folder.tensors(), str(folder.path / WEIGHTS), device, dtype)
