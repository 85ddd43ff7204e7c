"""torch.compile of a model's repeated blocks, in place: names in the state dict do not change."""

from __future__ import annotations

import importlib.util

import torch
from torch import nn

from dalle.image_tokenizers.vqgan import Decoder, Encoder
from dalle.kernels.compiler import cpp_compiler
from dalle.models.transformer import Block
from dalle.training.distributed.fsdp import fsdp_units, is_sharded


def compile_blocks(model: nn.Module, device: torch.device) -> str | None:
    """Compile transformer blocks, or a VQGAN's encoder and decoder, on their first call.

    All blocks share one compilation, so compiling takes as long for 48 layers as for one. In a sharded model the two
    FSDP units of each block are compiled instead, since their weights must be gathered outside of compiled code.

    Returns:
        The reason why nothing is compiled; None if it is.
    """
    parts: list[nn.Module] = [module for module in model.modules() if isinstance(module, (Block, Encoder, Decoder))]
    if is_sharded(model.parameters()):
        parts = fsdp_units(model)
    if not parts:
        return "this model has no blocks to compile"
    missing = _missing(device)
    if missing is None:
        for part in parts:
            part.compile()  # in place: the state dict keeps its names
    return missing


def _missing(device: torch.device) -> str | None:
    """A requirement of torch.compile on this device that is not met; None if all are."""
    if device.type == "cpu" and cpp_compiler() is None:
        return "no C++ compiler was found (g++, clang++, or the one in CXX)"
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return None
