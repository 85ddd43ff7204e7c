"""Loads weights into ready-to-use modules: from our model folders or published files, local or on a hub.

Knows nothing of how the weights were trained.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from dalle import text_tokenizers
from dalle.checkpoints.hub import resolve
from dalle.checkpoints.model_folder import WEIGHTS, ModelFolder
from dalle.checkpoints.modules import load_weights, skip_init
from dalle.checkpoints.published import mindalle
from dalle.checkpoints.published.clip import check_text_tokenizer, read_clip
from dalle.checkpoints.published.image_tokenizers import read_image_tokenizer, resize_tokenizer
from dalle.checkpoints.published.models import read_model
from dalle.checkpoints.published.state import Published
from dalle.checkpoints.published.text_tokenizers import MissingTokenizer, clip_text_tokenizer, read_text_tokenizer
from dalle.config import from_dict
from dalle.image_tokenizers import ImageTokenizer, ImageTokenizerConfig, build
from dalle.models.autoregressive_prior import AutoregressivePrior, AutoregressivePriorConfig
from dalle.models.clip import CLIP, CLIPConfig
from dalle.models.dalle import DALLE
from dalle.models.dalle_config import DALLEConfig
from dalle.models.diffusion_decoder import DecoderConfig, DiffusionDecoder
from dalle.models.diffusion_prior import DiffusionPrior, DiffusionPriorConfig
from dalle.models.latent_decoder import LatentDecoder, LatentDecoderConfig
from dalle.models.movq import MoVQ, MoVQConfig
from dalle.models.upsampler import Upsampler, UpsamplerConfig
from dalle.text_tokenizers import TextTokenizer

DIFFUSIONS = DecoderConfig | LatentDecoderConfig | UpsamplerConfig
_Module = TypeVar("_Module", bound=nn.Module)
_Device = str | torch.device
Source = str | Path | ModelFolder
"""Local file or folder, hub id, or a model folder that is already open."""

# stage in config.yaml -> description and loader, for error messages
_STAGES = {
    "text_tokenizer": ("a text tokenizer", "dalle.load_text_tokenizer"),
    "image_tokenizer": ("an image tokenizer", "dalle.load_image_tokenizer"),
    "clip": ("a CLIP", "dalle.load_clip"),
    "dalle": ("a DALL-E", "dalle.load_model"),
    "prior": ("a prior of unCLIP", "dalle.load_prior"),
    "diffusion": ("a decoder or an upsampler of unCLIP", "dalle.load_diffusion"),
    "autoencoder": ("an autoencoder of latents", "dalle.checkpoints.load.load_autoencoder"),
    "unclip": ("an unCLIP with all its parts", "dalle.UnCLIP.from_pretrained"),
}


def load_text_tokenizer(source: Source, add_special_tokens: bool = True) -> TextTokenizer:
    """Load a text tokenizer.

    Args:
        source: local file or folder, or hub id; ours or published (docs/checkpoints.md); also a model's with one in it.
        add_special_tokens: whether a published tokenizer adds begin and end tokens (False for DALLE-pytorch).

    Raises:
        ValueError: the source does not exist, is something else, or is damaged.
    """
    found = open_source(source)
    if isinstance(found, Path):
        return read_text_tokenizer(found, add_special_tokens)
    if "text_tokenizer" in found.components:  # of a DALL-E or a CLIP
        found = found.component("text_tokenizer")
    elif "text_encoder" in found.config:
        raise ValueError(
            f"{found.path} has no text tokenizer: it reads captions through the T5 {found.config['text_encoder']}"
        )
    _check_stage(found, "text_tokenizer")
    return text_tokenizers.load(found.path, found.config)


def load_image_tokenizer(
    source: Source, device: _Device = "cpu", dtype: torch.dtype | None = None, rows: int | None = None
) -> ImageTokenizer:
    """Load an image tokenizer in evaluation mode.

    Args:
        source: local file or folder, or hub id; ours or published (docs/checkpoints.md).
        device: where to put its weights.
        dtype: floating-point dtype of its weights; None is float32.
        rows: for a published one, rows of codes per image; None is the size it was trained on.

    Raises:
        ValueError: the source does not exist, is something else, or its weights do not match its config.
    """
    folder = open_source(source)
    if isinstance(folder, Path):
        found = read_image_tokenizer(folder)
        return build_published_image_tokenizer(
            found if rows is None else resize_tokenizer(found, rows), str(source), device, dtype
        )
    _check_stage(folder, "image_tokenizer")
    with skip_init():
        module = build(from_dict(ImageTokenizerConfig, folder.config["model"], folder.origin))
    return _fill(module, folder, device, dtype)


def load_clip(source: Source, device: _Device = "cpu", dtype: torch.dtype | None = None, **given: Any) -> CLIP:
    """Load a CLIP in evaluation mode, with its text tokenizer attached, so that it accepts strings.

    Published weights without a text tokenizer, here or on the hub, embed images and ids; strings are then an error that
    says what is missing. Of a model of one tower, the other's methods raise ValueError.

    Args:
        source: local file or folder, or hub id; ours or published (docs/checkpoints.md).
        device: where to put its weights.
        dtype: floating-point dtype of its weights; None is float32.
        given: what a published file does not record: `feed_forward`, `heads`, `text_heads`.

    Raises:
        ValueError: the source does not exist, is something else, or its weights do not match its config.
    """
    folder = open_source(source)
    if isinstance(folder, Path):
        found = read_clip(folder, given)
        with skip_init():
            empty = CLIP(found.config)
        found.check(empty, str(source))
        module = load_weights(empty, found.tensors, str(source), device, dtype)
        if found.config.missing != "text":
            try:
                words = clip_text_tokenizer(folder, found.config.towers)
            except MissingTokenizer as error:
                module.no_tokenizer = str(error)
            else:
                check_text_tokenizer(found, words)
                module.tokenizer = words
        return module
    # Facts are given for published files alone: of ours they would contradict what is stored
    if given:
        raise ValueError(f"{next(iter(given))} is not to be given: the config.yaml of {source} tells it")
    _check_stage(folder, "clip")
    with skip_init():
        module = CLIP(from_dict(CLIPConfig, folder.config["model"], folder.origin))
    _fill(module, folder, device, dtype)
    if module.config.missing != "text":
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
        source: local file or folder, or hub id; ours or published (docs/checkpoints.md).
        family: family of published files, one of `dalle.checkpoints.published.models.FAMILIES`; None detects it.
        device: where to put its weights.
        dtype: floating-point dtype of its weights; None is float32. torch.int8 quantizes linear layers as they are
            read, for sampling on a CPU.
        given: what a published file does not record: `heads`, `convention` (ruDALL-E), `grid` (LlamaGen).

    Raises:
        ValueError: the source does not exist, is something else, or its weights do not match its config.
    """
    folder = open_source(source, family)
    if isinstance(folder, Path):
        return build_published_model(read_model(folder, family, given).model, str(source), device, dtype)
    if given:
        raise ValueError(f"{next(iter(given))} is not to be given: the config.yaml of {source} tells it")
    _check_stage(folder, "dalle")
    with skip_init():
        module = DALLE(from_dict(DALLEConfig, folder.config["model"], folder.origin))
    # Stored masks are known only now, with the weights
    _fill(module, folder, device, dtype).detect_sparse_masks()
    return module


def load_prior(
    source: Source, device: _Device = "cpu", dtype: torch.dtype | None = None
) -> DiffusionPrior | AutoregressivePrior:
    """Load an unCLIP prior in evaluation mode; the CLIP that it was trained with is its component `clip`.

    Args:
        source: local model folder or hub id of one.
        device: where to put its weights.
        dtype: floating-point dtype of its weights; None is float32.

    Raises:
        ValueError: the source does not exist, is something else, or its weights do not match its config.
    """
    folder = _open_own(source, "prior", "a prior")
    schema = DiffusionPriorConfig | AutoregressivePriorConfig
    with skip_init():
        module = build_prior(from_dict(schema, folder.config["model"], folder.origin))
    return _fill(module, folder, device, dtype)


def build_prior(config: DiffusionPriorConfig | AutoregressivePriorConfig) -> DiffusionPrior | AutoregressivePrior:
    """Build the prior that a config describes, of either kind."""
    return DiffusionPrior(config) if isinstance(config, DiffusionPriorConfig) else AutoregressivePrior(config)


def load_diffusion(
    source: Source, device: _Device = "cpu", dtype: torch.dtype | None = None
) -> DiffusionDecoder | LatentDecoder | Upsampler:
    """Load an unCLIP decoder or upsampler in evaluation mode; the CLIP of a decoder is its component `clip`.

    Args:
        source: local model folder or hub id of one.
        device: where to put its weights.
        dtype: floating-point dtype of its weights; None is float32.

    Raises:
        ValueError: the source does not exist, is something else, or its weights do not match its config.
    """
    folder = _open_own(source, "diffusion", "a diffusion model")
    with skip_init():
        module = build_diffusion(from_dict(DIFFUSIONS, folder.config["model"], folder.origin))
    return _fill(module, folder, device, dtype)


def build_diffusion(
    config: DecoderConfig | LatentDecoderConfig | UpsamplerConfig,
) -> DiffusionDecoder | LatentDecoder | Upsampler:
    """Build the diffusion model that a config describes, of any kind."""
    if isinstance(config, LatentDecoderConfig):
        return LatentDecoder(config)
    return DiffusionDecoder(config) if isinstance(config, DecoderConfig) else Upsampler(config)


def load_autoencoder(source: Source, device: _Device = "cpu", dtype: torch.dtype | None = None) -> MoVQ:
    """Load the autoencoder of an unCLIP that decodes latents, in evaluation mode.

    Args:
        source: local model folder or hub id of one.
        device: where to put its weights.
        dtype: floating-point dtype of its weights; None is float32.

    Raises:
        ValueError: the source does not exist, is something else, or its weights do not match its config.
    """
    folder = _open_own(source, "autoencoder", "an autoencoder")
    with skip_init():
        module = MoVQ(from_dict(MoVQConfig, folder.config["model"], folder.origin))
    return _fill(module, folder, device, dtype)


def build_published(
    module_class: Callable[[Any], _Module],
    found: Published,
    source: str,
    device: _Device,
    dtype: torch.dtype | None = None,
) -> _Module:
    """Build a module of published files by its class, and load its weights."""
    with skip_init():
        module = module_class(found.config)
    found.check(module, source)
    return load_weights(module, found.tensors, source, device, dtype)


def build_published_model(found: Published, source: str, device: _Device, dtype: torch.dtype | None) -> DALLE:
    """Build the transformer of published files and load its weights."""
    with skip_init():
        module = DALLE(found.config)
    found.check(module, source)
    load_weights(module, found.tensors, source, device, dtype).detect_sparse_masks()
    return module


def build_published_image_tokenizer(
    found: Published, source: str, device: _Device, dtype: torch.dtype | None
) -> ImageTokenizer:
    """Build the image tokenizer of published files and load its weights."""
    with skip_init():
        module = build(found.config)
    found.check(module, source)
    return load_weights(module, found.tensors, source, device, dtype)


def is_model_folder(path: Path) -> bool:
    """Whether a folder is a model folder as train.py and `convert` write it.

    A published minDALL-E folder also has a config.yaml, of another kind.
    """
    return (path / "config.yaml").is_file() and not mindalle.is_there(path)


def open_source(source: Source, family: str | None = None) -> ModelFolder | Path:
    """Resolve a source: an open model folder of ours, or the path of published files (always, if `family` is given).

    Raises:
        ValueError: the source does not exist.
    """
    if isinstance(source, ModelFolder):
        return source
    path = resolve(source)
    return ModelFolder(path) if family is None and is_model_folder(path) else path


def _open_own(source: Source, stage: str, what: str) -> ModelFolder:
    """Open one of our own model folders, of a stage that has no published form here."""
    folder = open_source(source)
    if isinstance(folder, Path):
        raise ValueError(f"{source} has no config.yaml: give the folder of {what} made by train.py")
    _check_stage(folder, stage)
    return folder


def _check_stage(folder: ModelFolder, stage: str) -> None:
    """Check that a folder's config.yaml has the expected stage."""
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
        raise ValueError(f"{folder.origin} has no section `model:`: expected the architecture of {wanted} there")


def _fill(module: _Module, folder: ModelFolder, device: _Device, dtype: torch.dtype | None) -> _Module:
    loaded = load_weights(module, folder.tensors(), str(folder.path / WEIGHTS), device, dtype)
    folder.check()  # after what says more of a file that is cut short or of another shape
    return loaded
