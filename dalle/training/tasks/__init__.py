"""The stages of training as tasks, all of one shape (task.py), so that train.py needs one loop."""

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
from dalle.training.tasks.image_tokenizer import ImageTokenizerTask
from dalle.training.tasks.prior import PriorTask

__all__ = ["ContrastiveTask", "Phase", "Samples", "Task", "build_task"]


def build_task(recipe: LoopRecipe, device: torch.device, sharding: Sharding | None = None) -> Task:
    """The task of `recipe`, its modules freshly initialised from torch's global generator, on `device`.

    Raises:
        ValueError: the recipe does not fit its parts, or what it trains cannot be shared.
    """
    if isinstance(recipe, ImageTokenizerRecipe):
        if sharding is not None:
            raise ValueError("fsdp is for stages clip and dalle: an image tokenizer is small, set run.sharding=none")
        return ImageTokenizerTask(recipe, device)
    if isinstance(recipe, PriorRecipe):
        if sharding is not None:
            raise ValueError("fsdp is for stages clip and dalle: set run.sharding=none")
        return PriorTask(recipe, device)
    if isinstance(recipe, DiffusionRecipe):
        if sharding is not None:
            raise ValueError("fsdp is for stages clip and dalle: set run.sharding=none")
        return (DecoderTask if isinstance(recipe.model, DecoderConfig) else UpsamplerTask)(recipe, device)
    if isinstance(recipe, CLIPRecipe):
        return CLIPTask(recipe, device, sharding)
    assert isinstance(recipe, DALLERecipe)
    return DALLETask(recipe, device, sharding)
