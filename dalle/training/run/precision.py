"""Resolves `run.precision=auto` to fp32 or bf16."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch

from dalle.config import ConfigError, read_yaml
from dalle.training.recipe import LoopRecipe, Precision, RunConfig

ResolvedPrecision = Literal["fp32", "bf16", "fp16"]


def resolve_precision(recipe: LoopRecipe) -> LoopRecipe:
    """Replace precision `auto` in a recipe: by that of the run it resumes, else by what is fast on this machine."""
    run = recipe.run
    if run.precision != "auto":
        return recipe
    return replace(recipe, run=replace(run, precision=(_before(run) if recipe.resume else None) or fast_precision(run)))


def fast_precision(run: RunConfig) -> ResolvedPrecision:
    """Return bf16 if the device has fast bf16 matrix products, else fp32.

    Those are GPUs from Ampere on, and CPUs with AVX-512 BF16, AMX or Arm's BF16; others emulate bf16 slowly.
    """
    if run.device == "auto" and torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if run.device == "auto" and torch.accelerator.is_available():
        return "fp32"  # Apple's GPUs and others were not measured
    x86 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    arm = torch.cpu.get_capabilities().get("bf16", False) if hasattr(torch.cpu, "get_capabilities") else False
    return "bf16" if x86 or arm else "fp32"


def _before(run: RunConfig) -> Precision | None:
    """The precision with which the run in this folder was started; None if unknown."""
    try:
        content = read_yaml(run.dir / "config.yaml")
    except ConfigError:
        return None
    options = content.get("run")
    found = options.get("precision") if isinstance(options, dict) else None
    return found if found in ("fp32", "bf16", "fp16") else None
