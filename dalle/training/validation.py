"""Validation of a run: metrics and sample images of the same records each time, of the EMA weights if there are any."""

from __future__ import annotations

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from dalle.data import open_data
from dalle.data.bad_records import BadRecordCounter
from dalle.data.loader import evaluation_batches
from dalle.training.optim import EMA
from dalle.training.recipe import LoopRecipe
from dalle.training.run.log import RunLog
from dalle.training.tasks import Task
from dalle.training.train_step import evaluated

_BATCH = 32  # images of a batch in validation; also how many validation images `sample` is given


class Validation:
    """Measures the weights of a run on its validation split, and samples from them.

    Args:
        recipe: recipe of the run.
        accelerator: its accelerator.
        task: its task.
        ema: its EMA weights; None if they are disabled.
        sharded: whether its weights are sharded: gathering them takes every process. Else the main process works alone.

    Attributes:
        data: the validation split.

    Raises:
        ValueError: the data cannot be read.
    """

    def __init__(self, recipe: LoopRecipe, accelerator: Accelerator, task: Task, ema: EMA | None, sharded: bool):
        self.accelerator, self.task, self.ema, self._limit = accelerator, task, ema, recipe.run.validation_images
        self._participates = accelerator.is_main_process or sharded
        self.data = open_data(recipe.data, "validation", task.image_size)

    def metrics(self, step: int, log: RunLog, bad: BadRecordCounter) -> dict[str, float]:
        """The metrics of the weights after `step` steps, in every process; broken records go to `bad`."""
        found: dict[str, float] = {}
        if self._participates:
            with log.activity("validating"), evaluated(self.task.model, self.ema) as model:
                images = evaluation_batches(self.data, _BATCH, limit=self._limit, report=bad.add)
                found = self.task.validate(model, images)
                log.validation(step, found)
        return dict(broadcast_object_list([found])[0])  # all processes must agree on the best step

    def sample(self, step: int, log: RunLog, bad: BadRecordCounter) -> None:
        """Log sample images, if the stage has any."""
        if self._participates:
            with log.activity("sampling"), evaluated(self.task.model, self.ema) as model:
                # The same images each time
                first = next(evaluation_batches(self.data, _BATCH, limit=_BATCH, report=bad.add))
                samples = self.task.sample_images(model, first)
            if samples is not None and self.accelerator.is_main_process:
                log.samples(step, samples)
        self.accelerator.wait_for_everyone()
