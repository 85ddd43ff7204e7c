"""Loads the stages of unCLIP from model folders of ours: priors, decoders, upsamplers, autoencoders of latents.

Published ones come as a whole pipeline (`dalle.checkpoints.unclip`), never as one stage.
"""

from __future__ import annotations

import torch

from dalle.checkpoints.build import DIFFUSIONS, build_diffusion, build_own, build_prior
from dalle.checkpoints.source import Source, open_own
from dalle.models.autoregressive_prior import AutoregressivePrior, AutoregressivePriorConfig
from dalle.models.diffusion_decoder import DiffusionDecoder
from dalle.models.diffusion_prior import DiffusionPrior, DiffusionPriorConfig
from dalle.models.latent_decoder import LatentDecoder
from dalle.models.movq import MoVQ, MoVQConfig
from dalle.models.upsampler import Upsampler

_Device = str | torch.device


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
    return build_own(build_prior, schema, open_own(source, "prior", "a prior"), device, dtype)


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
    return build_own(build_diffusion, DIFFUSIONS, open_own(source, "diffusion", "a diffusion model"), device, dtype)


def load_autoencoder(source: Source, device: _Device = "cpu", dtype: torch.dtype | None = None) -> MoVQ:
    """Load the autoencoder of an unCLIP that decodes latents, in evaluation mode.

    Args:
        source: local model folder or hub id of one.
        device: where to put its weights.
        dtype: floating-point dtype of its weights; None is float32.

    Raises:
        ValueError: the source does not exist, is something else, or its weights do not match its config.
    """
    return build_own(MoVQ, MoVQConfig, open_own(source, "autoencoder", "an autoencoder"), device, dtype)
