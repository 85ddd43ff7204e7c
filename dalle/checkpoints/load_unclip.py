"""Loads the stages of unCLIP from model folders of ours: priors, decoders, upsamplers, autoencoders of latents.

Published ones come as a whole pipeline (`dalle.checkpoints.unclip`), never as one stage.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from dalle.checkpoints.build import DIFFUSIONS, build_diffusion, build_prior, fill
from dalle.checkpoints.model_folder import ModelFolder
from dalle.checkpoints.modules import skip_init
from dalle.checkpoints.source import Source, open_own
from dalle.config import from_dict
from dalle.models.autoregressive_prior import AutoregressivePrior, AutoregressivePriorConfig
from dalle.models.diffusion_decoder import DiffusionDecoder
from dalle.models.diffusion_prior import DiffusionPrior, DiffusionPriorConfig
from dalle.models.latent_decoder import LatentDecoder
from dalle.models.movq import MoVQ, MoVQConfig
from dalle.models.upsampler import Upsampler

_Device = str | torch.device
_Module = TypeVar("_Module", bound=nn.Module)


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
    schema = DiffusionPriorConfig | AutoregressivePriorConfig
    return _load(open_own(source, "prior", "a prior"), schema, build_prior, device, dtype)


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
    return _load(open_own(source, "diffusion", "a diffusion model"), DIFFUSIONS, build_diffusion, device, dtype)


def load_autoencoder(source: Source, device: _Device = "cpu", dtype: torch.dtype | None = None) -> MoVQ:
    """Load the autoencoder of an unCLIP that decodes latents, in evaluation mode.

    Args:
        source: local model folder or hub id of one.
        device: where to put its weights.
        dtype: floating-point dtype of its weights; None is float32.

    Raises:
        ValueError: the source does not exist, is something else, or its weights do not match its config.
    """
    return _load(open_own(source, "autoencoder", "an autoencoder"), MoVQConfig, MoVQ, device, dtype)


def _load(
    folder: ModelFolder,
    schema: Any,
    build: Callable[[Any], _Module],
    device: _Device,
    dtype: torch.dtype | None,
) -> _Module:
    """Build a module from the architecture in a folder, and fill it with the weights there."""
    with skip_init():
        module = build(from_dict(schema, folder.config["model"], folder.origin))
    return fill(module, folder, device, dtype)
