"""Builds modules that weights are loaded into, and fills them: from a config of ours, or from published files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from dalle.checkpoints.folder_config import WEIGHTS
from dalle.checkpoints.model_folder import ModelFolder
from dalle.checkpoints.modules import check_depth, load_weights, skip_init
from dalle.checkpoints.published.state import Published
from dalle.config import from_dict, renamed
from dalle.models.autoregressive_prior import AutoregressivePrior, AutoregressivePriorConfig
from dalle.models.dalle import DALLE
from dalle.models.diffusion_decoder import DecoderConfig, DiffusionDecoder
from dalle.models.diffusion_prior import DiffusionPrior, DiffusionPriorConfig
from dalle.models.latent_decoder import LatentDecoder, LatentDecoderConfig
from dalle.models.upsampler import Upsampler, UpsamplerConfig

DIFFUSIONS = DecoderConfig | LatentDecoderConfig | UpsamplerConfig
_Module = TypeVar("_Module", bound=nn.Module)
_Device = str | torch.device


def build_prior(config: DiffusionPriorConfig | AutoregressivePriorConfig) -> DiffusionPrior | AutoregressivePrior:
    """Build the prior that a config describes, of either kind."""
    return DiffusionPrior(config) if isinstance(config, DiffusionPriorConfig) else AutoregressivePrior(config)


def build_diffusion(
    config: DecoderConfig | LatentDecoderConfig | UpsamplerConfig,
) -> DiffusionDecoder | LatentDecoder | Upsampler:
    """Build the diffusion model that a config describes, of any kind."""
    if isinstance(config, LatentDecoderConfig):
        return LatentDecoder(config)
    return DiffusionDecoder(config) if isinstance(config, DecoderConfig) else Upsampler(config)


def build_published(
    make: Callable[[Any], _Module],
    found: Published,
    source: str,
    device: _Device,
    dtype: torch.dtype | None = None,
) -> _Module:
    """Build a module of published files by its class, or what makes it of a config, and load its weights."""
    check_depth(found.config, found.tensors, source)
    with skip_init():
        module = make(found.config)
    found.check(module, source)
    return load_weights(module, found.tensors, source, device, dtype)


def build_published_model(found: Published, source: str, device: _Device, dtype: torch.dtype | None) -> DALLE:
    """Build the transformer of published files and load its weights."""
    module = build_published(DALLE, found, source, device, dtype)
    module.detect_sparse_masks()  # stored masks are known only now, with the weights
    return module


def build_own(
    make: Callable[[Any], _Module], schema: Any, folder: ModelFolder, device: _Device, dtype: torch.dtype | None
) -> _Module:
    """Build a module of the architecture in a model folder of ours, and load the weights there.

    Args:
        make: class of the module, or what makes it of a config.
        schema: class of the config.
        folder: the model folder.
        device: where to put the weights.
        dtype: floating-point dtype of the weights; None is float32.
    """
    config, tensors = from_dict(schema, renamed(folder.config["model"]), folder.origin), folder.tensors()
    check_depth(config, tensors, folder.origin)
    with skip_init():  # the weights follow
        module = make(config)
    loaded = load_weights(module, tensors, str(folder.path / WEIGHTS), device, dtype)
    folder.check()  # after what says more of a file that is cut short or of another shape
    return loaded
