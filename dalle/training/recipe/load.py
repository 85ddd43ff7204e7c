"""Recipes from files: the stage of a YAML, its overrides and mistakes, and lengths in tokens as steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dalle.config import ConfigError, apply_overrides, describe, from_dict, read_yaml
from dalle.image_tokenizers import build
from dalle.models.diffusion_prior import DiffusionPriorConfig
from dalle.training.recipe.clip import CLIPRecipe
from dalle.training.recipe.dalle import DALLERecipe
from dalle.training.recipe.shipped import find_recipe, shipped_recipes
from dalle.training.recipe.tokenizers import ImageTokenizerRecipe, TextTokenizerRecipe
from dalle.training.recipe.unclip import DiffusionRecipe, PriorRecipe

Recipe = TextTokenizerRecipe | ImageTokenizerRecipe | CLIPRecipe | DALLERecipe | PriorRecipe | DiffusionRecipe
LoopRecipe = ImageTokenizerRecipe | CLIPRecipe | DALLERecipe | PriorRecipe | DiffusionRecipe

STAGES: dict[str, type] = {
    "text_tokenizer": TextTokenizerRecipe,
    "image_tokenizer": ImageTokenizerRecipe,
    "clip": CLIPRecipe,
    "dalle": DALLERecipe,
    "prior": PriorRecipe,
    "diffusion": DiffusionRecipe,
}


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and validate a recipe, given by path or shipped name, with `key.path=value` overrides. Opens no weights.

    Raises:
        ConfigError: lists every mistake in the file and the overrides, one per line, with its full path.
    """
    return parse_recipe(apply_overrides(read_yaml(find_recipe(path)), overrides), str(path))


def parse_recipe(data: dict[str, Any], source: str) -> Recipe:
    """Build a recipe from plain data; `source` names it in error messages.

    Raises:
        ConfigError: lists every mistake, as in `load_recipe`.
    """
    run = data.get("run")
    if isinstance(run, dict) and run.get("tokens") is not None:
        run.setdefault("steps", 0)  # a required field; `_in_steps` computes it from the tokens
    # One option instead of two that must agree: the loss decides whether the model has a bias
    if data.get("stage") == "clip" and data.get("loss") == "sigmoid" and isinstance(data.get("model"), dict):
        data["model"].setdefault("sigmoid", True)
    recipe: Recipe = from_dict(stage_schema(data, source), data, source)
    return recipe if isinstance(recipe, TextTokenizerRecipe) else _in_steps(recipe)


def tokens_per_image(recipe: LoopRecipe) -> int:
    """Return the number of tokens per training pair: caption (including padding) and image; for diffusion, pixels."""
    if isinstance(recipe, DALLERecipe):
        return recipe.model.text_length + recipe.model.grid[0] * recipe.model.grid[1]  # row ends are not counted
    if isinstance(recipe, CLIPRecipe):
        return recipe.model.text_length + (recipe.model.image_size // recipe.model.patch_size) ** 2
    if isinstance(recipe, PriorRecipe):
        model = recipe.model
        # After the caption's states and its embedding: time, noised embedding and query; or one token per component
        own = 3 if isinstance(model, DiffusionPriorConfig) else model.components or 0
        return model.text_length + 1 + own
    if isinstance(recipe, DiffusionRecipe):
        return recipe.model.image_size**2
    with torch.device("meta"):  # the grid depends on the architecture: build it without memory
        height, width = build(recipe.model).grid
    return height * width


def _in_steps(recipe: LoopRecipe) -> LoopRecipe:
    """Convert lengths given in tokens to steps."""
    run, optim = recipe.run, recipe.optim
    if run.tokens is None and optim.warmup_tokens is None:
        return recipe
    # Rounded up: a run sees at least as many tokens as it was asked for
    per_step = run.batch_size * tokens_per_image(recipe)
    if run.tokens is not None:
        run = replace(run, steps=math.ceil(run.tokens / per_step))
    if optim.warmup_tokens is not None:
        optim = replace(optim, warmup=math.ceil(optim.warmup_tokens / per_step))
    return replace(recipe, run=run, optim=optim)


def describe_recipes(path: Path | None = None) -> str:
    """Describe every option of a recipe with type, default and meaning; without a recipe, list those that ship."""
    if path is not None:
        data = read_yaml(find_recipe(path))
        return describe(stage_schema(data, str(path)), data)
    recipes = "\n".join(f"  {name}" for name in shipped_recipes())
    return f"recipes that ship; python train.py RECIPE --help lists the options of one:\n{recipes}"


def stage_schema(data: dict, source: str) -> type:
    """Return the recipe class for the `stage:` of plain data.

    Raises:
        ConfigError: the stage is missing or unknown.
    """
    stage = data.get("stage")
    if not isinstance(stage, str) or stage not in STAGES:
        raise ConfigError(f"{source}: stage: expected one of {', '.join(STAGES)}, got {stage!r}")
    return STAGES[stage]
