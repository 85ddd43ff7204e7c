"""Recipes: the options that a YAML under configs/ or tokenizers/ may set, one frozen class per training stage."""

from dalle.training.recipe.clip import CLIPRecipe
from dalle.training.recipe.dalle import DALLERecipe
from dalle.training.recipe.load import (
    STAGES,
    LoopRecipe,
    Recipe,
    describe_recipes,
    load_recipe,
    parse_recipe,
    stage_schema,
    tokens_per_image,
)
from dalle.training.recipe.run import Precision, Resume, RunConfig
from dalle.training.recipe.tokenizers import ImageTokenizerRecipe, TextTokenizerRecipe
from dalle.training.recipe.unclip import DiffusionRecipe, PriorRecipe

__all__ = [
    "STAGES",
    "CLIPRecipe",
    "DALLERecipe",
    "DiffusionRecipe",
    "ImageTokenizerRecipe",
    "LoopRecipe",
    "Precision",
    "PriorRecipe",
    "Recipe",
    "Resume",
    "RunConfig",
    "TextTokenizerRecipe",
    "describe_recipes",
    "load_recipe",
    "parse_recipe",
    "stage_schema",
    "tokens_per_image",
]
