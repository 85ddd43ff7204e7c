"""torch.compile of what a model repeats, where there is a compiler. Names of weights stay as they are."""

from __future__ import annotations

import importlib.util

import torch
from torch import nn

from dalle.image_tokenizers.vqgan import Decoder, Encoder
from dalle.kernels.compiler import cpp_compiler
from dalle.models.transformer import Block
from dalle.training.distributed.fsdp import fsdp_units, is_sharded


def compile_blocks(model: nn.Module, device: torch.device) -> str | None:
    """Let blocks of a transformer, and encoder and decoder of a VQGAN, be compiled when they are first called.

    One block is compiled and serves all of its shape, so that compiling takes as long for 48 layers as for one. Of
    sharded blocks each of the two units is, whose weights are gathered before it is called.

    Returns:
        Why nothing is compiled; None if it will be.
    """
    parts: list[nn.Module] = [module for module in model.modules() if isinstance(module, (Block, Encoder, Decoder))]
    if is_sharded(model.parameters()):
        parts = fsdp_units(model)
    if not parts:
        return "this model has no blocks that are compiled"
    missing = _missing(device)
    if missing is None:
        for part in parts:
            part.compile()
    return missing


def _missing(device: torch.device) -> str | None:
    """What torch.compile wants for a device and does not find."""
    if device.type == "cpu" and cpp_compiler() is None:
        return "there is no C++ compiler (g++, clang++, or what CXX names)"
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return None
