"""A run: all that a training needs, and what is done now and then. The loop itself is in train.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from dalle.config import to_dict
from dalle.data import open_data, open_training
from dalle.data.bad_records import BadRecordCounter
from dalle.data.loader import Batch, batches, evaluation_batches
from dalle.data.summary import Summary, record_and_compare, summarize
from dalle.training.checkpoint import checkpoint
from dalle.training.checkpoint.best import Best, check_numbers, validations
from dalle.training.checkpoint.checkpoint import Checkpoint
from dalle.training.checkpoint.latest import load_newest
from dalle.training.distributed import powersgd
from dalle.training.distributed.powersgd import PowerSGD
from dalle.training.init_from import prepare_initial
from dalle.training.optim import EMA, adamw
from dalle.training.recipe import CLIPRecipe, DALLERecipe, LoopRecipe
from dalle.training.run.compiling import compile_blocks
from dalle.training.run.log import RunLog, start_accelerator, start_sharding
from dalle.training.run.precision import settle_precision
from dalle.training.run.run_dir import describe, open_folder
from dalle.training.skipped_steps import SkippedStepMonitor, StopSignal
from dalle.training.tasks import build_task
from dalle.training.train_step import evaluated, seed_noise


class Run:
    """One training.

    Attributes:
        options: `run:` of the recipe.
        accelerator: devices, precision, processes.
        task: the stage: its modules, losses and figures.
        optimizers: one for each phase of the task.
        ema: averaged weights; None: there are none.
        compressors: of gradients, one for each phase; empty: they are all-reduced in full.
        log: metrics.jsonl, trackers, the progress bar.
        start: steps that were done before.
        step: steps that are done.
    """

    def __init__(self, recipe: LoopRecipe) -> None:
        """Start a run, or go on with one.

        Raises:
            ValueError: something of the recipe cannot be had, or its folder holds another run.
        """
        self.recipe = recipe = settle_precision(recipe)
        self.options = run = recipe.run
        self.accelerator = start_accelerator(run)
        self.sharding = start_sharding(run, self.accelerator)
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        if isinstance(recipe, (CLIPRecipe, DALLERecipe)) and recipe.init_from is not None:
            with self.accelerator.main_process_first():
                prepare_initial(recipe)
        torch.manual_seed(run.seed)
        self.task = task = build_task(recipe, self.accelerator.device, self.sharding)
        self._uncompiled = compile_blocks(task.model, self.accelerator.device) if run.compile else None
        self.optimizers = {p.name: self.accelerator.prepare(adamw(p.module, p.optim)) for p in task.phases}
        self.ema = EMA(task.model, recipe.optim.ema) if recipe.optim.ema else None
        compressed = run.powersgd is not None and self.world > 1
        self.compressors = {p.name: PowerSGD(run.powersgd) for p in task.phases} if compressed and run.powersgd else {}
        # Whether this process takes part in what a single one could do alone: of sharded weights all have to
        self.participates = self.accelerator.is_main_process or self.sharding is not None
        data = open_training(recipe.data, task.image_size)
        self.held_out = open_data(recipe.data, "validation", task.image_size)
        self.bad = BadRecordCounter(recipe.data.max_bad)
        self.lock, self._resumes = open_folder(recipe, self.accelerator)
        self.start = self.step = self._restore() if self._resumes else 0
        if self.accelerator.is_main_process:
            describe(recipe)
        self.accelerator.wait_for_everyone()
        self.best = Best(recipe.stage, run.keep_best, run.stop_after)
        self._batches = batches(
            data,
            batch_size=run.batch_size,
            seed=run.seed,
            start=self.start,
            rank=self.rank,
            world=self.world,
            workers=run.workers,
        )
        self.log = RunLog(recipe, self.accelerator, self.start, task)
        self._announce(summarize(data, self.held_out) if self.accelerator.is_main_process else None)
        self._skipped = SkippedStepMonitor(self.log, run.max_skipped, run.dir)
        self.told_to_stop = StopSignal(self.accelerator)
        task.model.train()

    def _restore(self) -> int:
        """Put the newest checkpoint back; returns its step."""
        saved = load_newest(self.options.dir, self.accelerator)
        step = checkpoint.restore(
            saved, self.task.state, self.ema, self.optimizers, self.accelerator.scaler, self.recipe.model
        )
        powersgd.read(saved.folder, self.compressors, self.rank, self.world, self.accelerator.device)
        self.bad.merge(saved.bad or [])
        return step

    def _announce(self, summary: Summary | None) -> None:
        """Say what is begun, before the bar."""
        if self.recipe.resume == "auto":
            begun = f"goes on after step {self.start}" if self._resumes else "a run that begins"
            self.log.say(f"resume=auto: {begun}")
        if summary is not None:
            self.log.say(str(summary))
            if (other := record_and_compare(summary, self.options.dir / "data.json")) is not None:
                self.log.say(other)
        if self._uncompiled is not None:
            self.log.say(f"run.compile: {self._uncompiled}; training goes on uncompiled")

    def resume(self) -> None:
        """Take up what is known of the best weights of a run that goes on, and the validation that it still owes."""
        if not self._resumes:
            return
        for number, figures in broadcast_object_list([validations(self.log.file)])[0]:
            self.best.add(number, figures)
        if self.best.step is not None:
            self._export_best()
        # It was told to end before it could validate
        if self.due("validate") and self.best.validated < self.start and (self.validate() or self.best.over):
            self.save()

    def _export_best(self) -> None:
        """Bring the best weights, of a checkpoint, back into the model folder."""
        assert self.best.step is not None
        folder = checkpoint.folder_of(self.options.dir, self.best.step)
        if not folder.is_dir():
            self.log.say(f"the checkpoint of the best weights ({self.best}) is gone: the next validation is the best")
            self.best.forget()
        elif self.accelerator.is_main_process:
            kept = checkpoint.export_weights(folder)
            weights = kept if self.sharding else {**self.task.model.state_dict(), **kept}
            self.task.export(self.options.dir / "model", weights)

    def steps(self) -> Iterator[int]:
        """The steps that are left, by how many were done before; each with random numbers of its own."""
        while self.step < self.options.steps and not self.best.over:
            seed_noise(self.options.seed, self.step, self.rank)
            yield self.step

    def next_batch(self) -> Batch:
        """This process's share of the next batch."""
        with self.log.waiting():
            batch = next(self._batches)
        self.bad.add(batch.bad)
        return batch

    def logs(self, step: int) -> bool:
        """Whether the step that follows `step` others has a line in the log."""
        return self.options.logs(step)

    def finish_step(self, norms: Mapping[str, Tensor], figures: dict[str, float]) -> None:
        """What follows the optimizers: codebook statistics, EMA, skipped steps, a line in the log.

        Args:
            norms: of each phase that ran the norm of its gradient, on the device.
            figures: what is logged of this step.
        """
        to_log = self.logs(self.step)
        self.step += 1
        applied = next(iter(norms.values())).isfinite()  # where only the last phase was not, those before were
        if self.task.needs_sync and not applied:
            self.task.reset_statistics()
        else:
            self.task.on_step_end(self._sum)
        if self.ema is not None:
            self.ema.update(self.step, applied)
        self._skipped.add(self.step, norms)
        # Other steps are reported one step late: meanwhile the device has the next one to do
        taken = self._skipped.settle(self.step if to_log else self.step - 1)
        self.log.step()
        if to_log and taken:
            self.log.train(self.step, figures | self.task.figures(self._sum))

    def _sum(self, tensor: Tensor) -> Tensor:
        return self.accelerator.reduce(tensor, reduction="sum")

    def due(self, what: str) -> bool:
        """Whether it is time to "save", "validate" or "sample"."""
        every: int = getattr(self.options, f"{what}_every")
        return self.step % every == 0

    @property
    def last(self) -> bool:
        """Whether the last step is done."""
        return self.step == self.options.steps or self.best.over

    def save(self) -> None:
        """Write a checkpoint, and the newest weights as a folder that `dalle` loads, unless others were better."""
        run, accelerator = self.options, self.accelerator
        self._skipped.settle(self.step)
        self.bad.merge(gather_object(list(self.bad.names)))
        now = Checkpoint.of(
            self.step,
            self.task.state,
            self.ema,
            self.optimizers,
            accelerator.scaler,
            to_dict(self.recipe.model),
            list(self.bad.names),
        )
        with checkpoint.as_value_error(run.dir, self.step):
            folder = checkpoint.save(run.dir, now, run.keep, accelerator, self.compressors, self.best.step)
            if accelerator.is_main_process and self.best.is_exported(self.step):
                weights = self.task.model.state_dict() if self.ema is None else self.ema.state
                self.task.export(
                    run.dir / "model", weights if self.sharding is None else checkpoint.export_weights(folder)
                )
        accelerator.wait_for_everyone()

    def validate(self) -> bool:
        """Validate; returns whether these weights are the best so far.

        Raises:
            NotANumber: a figure is NaN.
        """
        try:
            figures = self._figures()
        except Exception:
            if self.world == 1:  # elsewhere the others wait
                self.save()
            raise
        check_numbers(self.step, figures, self.options.dir)
        return self.best.add(self.step, figures)

    def _figures(self) -> dict[str, float]:
        figures: dict[str, float] = {}
        if self.participates:
            with evaluated(self.task.model, self.ema) as model:
                limit = self.options.validation_images
                figures = self.task.validate(
                    model, evaluation_batches(self.held_out, 32, limit=limit, report=self.bad.add)
                )
                self.log.validation(self.step, figures)
        return dict(broadcast_object_list([figures])[0])  # so that all agree on the best

    def sample(self) -> None:
        """Log the stage's sample images."""
        if self.participates:
            with evaluated(self.task.model, self.ema) as model:
                batch = next(iter(evaluation_batches(self.held_out, 32, limit=32, report=self.bad.add)))
                samples = self.task.sample_images(model, batch)
            if samples is not None and self.accelerator.is_main_process:
                self.log.samples(self.step, samples)
        self.accelerator.wait_for_everyone()

    def finish(self) -> bool:
        """Say how it ended; returns whether it came to its end."""
        run = self.options
        if self.bad.names:
            self.log.say(self.bad.report())
        if self.best.over:
            since = f"{self.best.since} validations since the best, {self.best}"
            self.log.say(f"run.stop_after: {since}; ended at step {self.step}")
        elif self.step < run.steps:
            self.log.say(f"stopped at step {self.step}; go on with: python train.py ... run.dir={run.dir} resume=true")
            return False
        elif self.step == self.start:
            self.log.say(f"nothing to train: step {self.step} is done, and run.steps is {run.steps}")
            return True
        newest = f" (the best, {self.best}; the newest: {checkpoint.folder_of(run.dir, self.step)})"
        self.log.say(f"weights: {run.dir / 'model'}{newest if self.best.step is not None else ''}")
        return True
