"""Tasks: the stages of training behind one interface (base.py), so that train.py needs a single loop."""

from __future__ import annotations

import torch

from dalle.models.diffusion_decoder import DecoderConfig
from dalle.training.distributed.fsdp import Sharding
from dalle.training.recipe import (
    CLIPRecipe,
    DALLERecipe,
    DiffusionRecipe,
    ImageTokenizerRecipe,
    LoopRecipe,
    PriorRecipe,
)
from dalle.training.tasks.base import ContrastiveTask, Phase, Samples, Task
from dalle.training.tasks.clip import CLIPTask
from dalle.training.tasks.dalle import DALLETask
from dalle.training.tasks.diffusion import DecoderTask, UpsamplerTask
from dalle.training.tasks.grpo import GRPOTask
from dalle.training.tasks.image_tokenizer import ImageTokenizerTask
from dalle.training.tasks.prior import PriorTask

__all__ = ["ContrastiveTask", "Phase", "Samples", "Task", "build_task"]


def build_task(recipe: LoopRecipe, device: torch.device, sharding: Sharding | None = None) -> Task:
    """Build the task of a recipe on a device, its modules initialized from torch's global random generator.

    Raises:
        ValueError: the recipe does not fit its tokenizers or CLIP, or its stage does not support sharding.
    """
    if isinstance(recipe, DALLERecipe):
        return (DALLETask if recipe.grpo is None else GRPOTask)(recipe, device, sharding)
    if isinstance(recipe, CLIPRecipe):
        return CLIPTask(recipe, device, sharding)
    # The other stages have batch statistics or small networks, which sharding does not suit
    if sharding is not None:
        raise ValueError("fsdp supports only stages clip and dalle: set run.sharding=none")
    if isinstance(recipe, ImageTokenizerRecipe):
        return ImageTokenizerTask(recipe, device)
    if isinstance(recipe, PriorRecipe):
        return PriorTask(recipe, device)
    assert isinstance(recipe, DiffusionRecipe)
    return (DecoderTask if isinstance(recipe.model, DecoderConfig) else UpsamplerTask)(recipe, device)
