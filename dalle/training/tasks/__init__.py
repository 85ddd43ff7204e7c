"""The stages of training as tasks, all of one shape (task.py), so that train.py needs one loop."""

from __future__ import annotations

import torch

from dalle.training.recipe import CLIPRecipe, DALLERecipe, ImageTokenizerRecipe, LoopRecipe
from dalle.training.tasks.clip import CLIPTask
from dalle.training.tasks.dalle import DALLETask
from dalle.training.tasks.image_tokenizer import ImageTokenizerTask
from dalle.training.tasks.task import Phase, Samples, Task

__all__ = ["Phase", "Samples", "Task", "build_task"]


def build_task(recipe: LoopRecipe, device: torch.device) -> Task:
    """The task of `recipe`, its modules freshly initialised from torch's global generator, on `device`."""
    if isinstance(recipe, ImageTokenizerRecipe):
        return ImageTokenizerTask(recipe, device)
    if isinstance(recipe, CLIPRecipe):
        return CLIPTask(recipe, device)
    assert isinstance(recipe, DALLERecipe)
    return DALLETask(recipe, device)
