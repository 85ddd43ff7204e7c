"""A training run: everything that the loop in train.py uses, and its periodic work (checkpoint, validate, sample)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from dalle.config import to_dict
from dalle.data import open_training
from dalle.data.bad_records import BadRecordCounter
from dalle.data.base import PairStream
from dalle.data.batch import Batch, check_batch_memory
from dalle.data.loader import batches
from dalle.data.summary import Summary, record_and_compare, summarize
from dalle.training.checkpoint import checkpoint
from dalle.training.checkpoint.best import BestTracker, check_not_nan, validations
from dalle.training.checkpoint.checkpoint import Checkpoint
from dalle.training.checkpoint.folders import folder_of
from dalle.training.checkpoint.latest import load_latest
from dalle.training.checkpoint.restore import restore
from dalle.training.distributed import powersgd
from dalle.training.distributed.powersgd import PowerSGD
from dalle.training.optim import EMA, build_optimizer
from dalle.training.recipe import LoopRecipe
from dalle.training.run.compiling import compile_blocks
from dalle.training.run.log import RunLog, start_sharding
from dalle.training.run.run_dir import changed_options, check_run_dir, describe, open_run_dir, resume_command
from dalle.training.skipped_steps import SkippedStepMonitor, StopSignal
from dalle.training.tasks import build_task
from dalle.training.train_step import seed_noise
from dalle.training.validation import Validation


class Run:
    """One training run.

    Attributes:
        options: `run:` of the recipe.
        accelerator: devices, precision, processes.
        task: modules, losses and metrics of the stage.
        optimizers: one per phase of the task.
        ema: EMA weights; None if they are disabled.
        validation: measures the weights and samples from them.
        compressors: PowerSGD state per phase; empty if gradients are all-reduced in full.
        log: metrics.jsonl, trackers, progress bar.
        start: number of steps completed before this process started.
        step: number of completed steps.
    """

    def __init__(self, recipe: LoopRecipe, accelerator: Accelerator) -> None:
        """Start a run, or restore one from its latest checkpoint.

        Args:
            recipe: recipe with a resolved precision.
            accelerator: accelerator of `start_accelerator`.

        Raises:
            ValueError: the recipe asks for something that is not available here, or its folder holds another run.
        """
        self.recipe, self.accelerator = recipe, accelerator
        self.options = run = recipe.run
        check_run_dir(recipe, accelerator)
        self.sharding = start_sharding(run, self.accelerator)
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        torch.manual_seed(run.seed)  # the same initial weights in every process
        self.task = task = build_task(recipe, self.accelerator.device, self.sharding)
        self._uncompiled = compile_blocks(task.model, self.accelerator.device) if run.compile else None
        self.optimizers = {p.name: self.accelerator.prepare(build_optimizer(p.module, p.optim)) for p in task.phases}
        self.ema = EMA(task.model, recipe.optim.ema) if recipe.optim.ema else None
        compressed = run.powersgd is not None and self.world > 1
        self.compressors = {p.name: PowerSGD(run.powersgd) for p in task.phases} if compressed and run.powersgd else {}
        # Before the folder: a mistake in the recipe or the data must not leave one behind that looks like a run
        check_batch_memory(run.batch_size // self.world, task.image_size)
        data = open_training(recipe.data, task.image_size)
        if not isinstance(data, PairStream):
            task.check_data(len(data), run.batch_size)
        self.validation = Validation(recipe, accelerator, task, self.ema, self.sharding is not None)
        self.bad = BadRecordCounter(recipe.data.max_bad)
        self.lock, self._resumes = open_run_dir(recipe, self.accelerator)
        self.start = self.step = self._restore() if self._resumes else 0
        # Before `describe`, which overwrites the config that these are compared with
        changes = changed_options(recipe) if self._resumes and self.accelerator.is_main_process else []
        if self.accelerator.is_main_process:
            describe(recipe)
        self.accelerator.wait_for_everyone()
        self.best = BestTracker(recipe.stage, run.keep_best, run.stop_after)
        self._batches = batches(
            data,
            batch_size=run.batch_size,
            seed=run.seed,
            start=self.start,
            rank=self.rank,
            world=self.world,
            workers=run.workers,
        )
        # Before the progress bar, behind which an error would continue its line
        summary = summarize(data, self.validation.data) if self.accelerator.is_main_process else None
        # After restoring: it cuts off what metrics.jsonl says of steps behind the checkpoint, which come again
        self.log = RunLog(recipe, self.accelerator, self.start, task)
        self._announce(summary, changes if recipe.resume is True else [])
        self._skipped = SkippedStepMonitor(self.log, run.max_skipped, run.dir)
        self.should_stop = StopSignal(self.accelerator)
        task.model.train()

    def _restore(self) -> int:
        """Restore the latest checkpoint; returns the number of completed steps."""
        saved = load_latest(self.options.dir, self.accelerator)
        step = restore(saved, self.task.state, self.ema, self.optimizers, self.accelerator.scaler, self.recipe.model)
        powersgd.read(saved.folder, self.compressors, self.rank, self.world, self.accelerator.device)
        self.bad.merge(saved.bad or [])
        return step

    def _announce(self, summary: Summary | None, changes: list[str]) -> None:
        """Print what is being started, and which options differ from the run's, before the progress bar appears."""
        if self.recipe.resume == "auto":
            begun = f"resuming after step {self.start}" if self._resumes else "starting a new run"
            self.log.say(f"resume=auto: {begun}")
        for change in changes:
            self.log.say(f"resume=true: {change}")
        if summary is not None:
            self.log.say(str(summary))
            if (other := record_and_compare(summary, self.options.dir / "data.json")) is not None:
                self.log.say(other)
        if self._uncompiled is not None:
            self.log.say(f"run.compile: {self._uncompiled}; training without compilation")

    def resume(self) -> None:
        """Complete a resumed run: history of the best validation, exported weights, a validation it did not get to."""
        if not self._resumes:
            return
        # The main process's file, as all must agree on the best step: they stop and save together
        for number, metrics in broadcast_object_list([validations(self.log.file)])[0]:
            self.best.add(number, metrics)
        self._export_again()
        # A signal ends a run after the checkpoint, without the validation that was due at that step
        if self.due("validate") and self.best.validated < self.start and (self.validate() or self.best.should_stop):
            self.save()

    def _export_again(self) -> None:
        """Write the model folder as the checkpoint before did, whose export may have failed or been interrupted."""
        run = self.options.dir
        step = self.start if self.best.step is None else self.best.step
        if not folder_of(run, step).is_dir():
            self.log.say(
                f"the checkpoint of the best weights ({self.best}) is missing: the next validation counts as the best"
            )
            self.best.reset()
            if (run / "model").is_dir():  # with the best weights, which are nowhere else
                return
            step = self.start
        if self.accelerator.is_main_process:
            with checkpoint.as_value_error(run, step, exporting=True):
                stored = checkpoint.export_weights(folder_of(run, step))
                # With LoRA the checkpoint has the adapters only: the frozen weights come from the model
                weights = stored if self.sharding else {**self.task.model.state_dict(), **stored}
                self.task.export(run / "model", weights)

    def steps(self) -> Iterator[int]:
        """Iterate over the remaining steps, yielding the number of completed ones; seeds the noise of each step."""
        while self.step < self.options.steps and not self.best.should_stop:
            seed_noise(self.options.seed, self.step, self.rank)
            yield self.step

    def next_batch(self) -> Batch:
        """Return this process's part of the next batch.

        Raises:
            ValueError: the data cannot be read, or too much of it; what was trained so far has been saved.
            OSError: likewise.
        """
        with self._saved_if_it_fails():
            with self.log.waiting_for_data():
                batch = next(self._batches)
            self.bad.add(batch.bad)
        return batch

    @contextmanager
    def _saved_if_it_fails(self) -> Iterator[None]:
        """Save the steps since the last checkpoint if a block fails: the error is not theirs.

        With several processes only some may have failed, and saving, a collective operation, would hang.
        """
        known = list(self.bad.names)
        try:
            yield
        except Exception:
            # What is broken only since then would still be counted when a disk that had vanished is there again
            self.bad.names = dict.fromkeys(known)
            if self.world == 1 and self.step > self.start and not folder_of(self.options.dir, self.step).exists():
                self.save()
                self.log.say(f"saved step {self.step}; continue with: {resume_command(self.options.dir)}")
            raise

    def logs(self, step: int) -> bool:
        """Return whether the next step, after `step` completed ones, is logged."""
        return self.options.logs(step)

    def finish_step(self, norms: Mapping[str, Tensor], metrics: dict[str, float]) -> None:
        """Finish a step after the optimizers: codebook statistics, EMA, skipped steps, log line.

        Args:
            norms: gradient norm of each phase that ran, on the device.
            metrics: values to log; empty if this step is not logged.
        """
        to_log = self.logs(self.step)
        self.step += 1
        applied = next(iter(norms.values())).isfinite()  # of the first phase, which the EMA averages
        if self.task.needs_sync and not applied:
            # The codes of non-finite states would move an EMA codebook, though the weights were not stepped
            self.task.reset_statistics()
        else:
            self.task.on_step_end(self._sum)
        if self.ema is not None:
            self.ema.update(self.step, applied)
        self._skipped.add(self.step, norms)
        # A step that is logged has synchronized already; all others are checked one step late, so as not to wait
        taken = self._skipped.flush(self.step if to_log else self.step - 1)
        self.log.step()
        if to_log and taken:
            self.log.train(self.step, metrics | self.task.metrics(self._sum))

    def _sum(self, tensor: Tensor) -> Tensor:
        return self.accelerator.reduce(tensor, reduction="sum")

    def due(self, what: str) -> bool:
        """Return whether it is time to "save", "validate" or "sample"."""
        every: int = getattr(self.options, f"{what}_every")
        return self.step % every == 0

    @property
    def last(self) -> bool:
        """Whether the last step is completed."""
        return self.step == self.options.steps or self.best.should_stop

    def save(self) -> None:
        """Write a checkpoint, and export the weights to the model folder unless an earlier step was better."""
        run, accelerator = self.options, self.accelerator
        self._skipped.flush(self.step)  # a run that must end for non-finite steps ends before it saves
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
            with checkpoint.as_value_error(run.dir, self.step, exporting=True):
                # The weights of a sharded run are together in the checkpoint just written, and nowhere else
                self.task.export(
                    run.dir / "model", weights if self.sharding is None else checkpoint.export_weights(folder)
                )
        accelerator.wait_for_everyone()

    def validate(self) -> bool:
        """Validate; returns whether these weights are the best so far.

        Raises:
            NaNMetricError: a metric is NaN.
        """
        with self._saved_if_it_fails():
            metrics = self.validation.metrics(self.step, self.log, self.bad)
        check_not_nan(self.step, metrics, self.options.dir)
        return self.best.add(self.step, metrics)

    def sample(self) -> None:
        """Log sample images, if the stage has any."""
        self.validation.sample(self.step, self.log, self.bad)

    def finish(self) -> bool:
        """Print how the run ended; returns whether it is complete."""
        run = self.options
        if self.bad.names:
            self.log.say(self.bad.report())
        if self.best.should_stop:
            since = f"{self.best.since} validations since the best, {self.best}"
            self.log.say(f"run.stop_after: {since}; ended at step {self.step}")
        elif self.step < run.steps:
            self.log.say(f"stopped at step {self.step}; continue with: {resume_command(run.dir)}")
            return False
        elif self.step == self.start:
            self.log.say(
                f"nothing to train: run.steps is {run.steps}, and {self.step} are done; weights: {run.dir / 'model'}"
            )
            return True
        newest = f" (the best, {self.best}; the newest: {folder_of(run.dir, self.step)})"
        self.log.say(f"weights: {run.dir / 'model'}{newest if self.best.step is not None else ''}")
        return True
