#!/usr/bin/env python3
"""Train any stage from one YAML: python train.py configs/emoji/dalle.yaml optim.lr=1e-4 run.dir=runs/mine

`train` below is the loop of every stage. What differs between stages is in dalle/training/tasks/; the state of a run
and its periodic work (checkpoints, validation, samples) are in dalle/training/state.py.
Several processes: torchrun --nproc_per_node 2 train.py CONFIG ... (or, on GPUs, accelerate launch).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import closing, nullcontext

from dalle.cli.startup import explain_startup_errors
from dalle.cli.threads import limit_openmp_spinning

explain_startup_errors("train.py")
limit_openmp_spinning()  # before torch is imported

# isort: split
from torch import Tensor

from dalle.cli.errors import print_error, report_error
from dalle.cli.interrupt import SignalHandler, exit_code, quiet_exit, sigterm_raises
from dalle.cli.streams import settle_streams
from dalle.cli.train import parse
from dalle.config import dump
from dalle.data.workers import describe_lost_worker
from dalle.training.checkpoint.best import NaNMetricError
from dalle.training.init_config import resolve_recipe
from dalle.training.init_from import prepare_initial
from dalle.training.recipe import LoopRecipe, TextTokenizerRecipe
from dalle.training.run.log import start_accelerator
from dalle.training.run.malloc import keep_freed_memory
from dalle.training.run.precision import resolve_precision
from dalle.training.state import Run
from dalle.training.tasks.text_tokenizer import train_text_tokenizer
from dalle.training.train_step import accumulate, mean_metrics, optimizer_step, step_metrics

_OUT_OF_MEMORY_HINT = (
    "increase run.accumulation or decrease run.batch_size (python -m dalle find-batch finds what fits), or set "
    "model.transformer.checkpoint_activations=true; existing checkpoints are intact, and resume=true goes on from them"
)


def train(recipe: LoopRecipe) -> int:
    """Train to the last step, or until a signal; returns the exit code.

    Raises:
        ValueError: the recipe asks for something that is not available here, or training cannot continue.
    """
    recipe = resolve_precision(recipe)  # a resumed run goes on in the precision it began with, whatever the machine
    accelerator = start_accelerator(recipe.run)
    prepare_initial(recipe, accelerator)  # published weights become a model folder, so the rest knows one format only
    run = Run(recipe, accelerator)
    task = run.task
    # Closing the log ends the progress bar's line, so that an error message starts on a line of its own
    with run.lock, SignalHandler() as signals, closing(run.log):
        run.resume()
        for step in run.steps():
            batch = run.next_batch()
            # All inputs first: a GAN's second phase takes the same micro-batches as its first
            micro = [task.inputs(part) for part in batch.split(run.options.accumulation)]
            metrics: dict[str, float] = {}
            norms: dict[str, Tensor] = {}  # gradient norm of each phase, on the device
            for phase in task.active(step):  # a GAN has two: generator and discriminator
                loss, losses = accumulate(task, phase, micro, accelerator, step)
                optimizer, compressor = run.optimizers[phase.name], run.compressors.get(phase.name)
                norms[phase.name] = norm = optimizer_step(
                    phase, loss, optimizer, accelerator, step, run.options.steps, compressor
                )
                # Where the task must know, skip the discriminator after a skipped generator; this synchronizes
                if task.needs_sync and not norm.isfinite():
                    break
                if run.logs(step):  # reading metrics waits for the device, so not in every step
                    metrics |= mean_metrics(losses, accelerator) | {phase.name + "_gradient": norm.item()}
                    metrics |= step_metrics(phase, optimizer, compressor)
            run.finish_step(norms, metrics)
            stop = run.should_stop(signals.signal is not None)
            # A signal leaves little time: save first, validate after resuming
            improved = (run.last or (run.due("validate") and not stop)) and run.validate()
            if run.due("save") or run.last or stop or improved:
                run.save()
            if run.due("sample") or run.last:
                run.sample()
            if run.due("validate"):
                run.log.report()
            if stop:
                break
    return 0 if run.finish() else signals.code


def main(argv: Sequence[str] | None = None, program: str = "train.py") -> int:
    """Parse, validate, train; also `dalle train`. A user error is one line (for a config one per mistake), code 2."""
    with quiet_exit(argv):
        return _main(argv, program)


def _main(argv: Sequence[str] | None, program: str) -> int:
    show_traceback = False
    settle_streams()
    try:
        args = parse(argv, program)
        show_traceback = args.traceback
        recipe = resolve_recipe(args.config, args.overrides)
        if args.print_config:
            print(dump(recipe), end="")
            return 0
        # Before the first step; a process of torchrun may wait in a collective, where Python's handlers do not run
        with sigterm_raises() if os.environ.get("WORLD_SIZE", "1") == "1" else nullcontext():
            if isinstance(recipe, TextTokenizerRecipe):
                train_text_tokenizer(recipe)
                return 0
            keep_freed_memory()  # before the model: it does not hold for blocks that exist already
            return train(recipe)
    except NaNMetricError as error:
        print_error(program, error)
        return error.code
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        if show_traceback:
            raise
        lost = describe_lost_worker(error) if isinstance(error, RuntimeError) else None
        return report_error(program, error, lambda: _OUT_OF_MEMORY_HINT) if lost is None else print_error(program, lost)
    except KeyboardInterrupt as stop:  # before the first step, or a second one while a checkpoint was written
        print(f"{program}: stopped; checkpoints that there are stay as they are", file=sys.stderr)
        return exit_code(stop)


if __name__ == "__main__":
    sys.exit(main())
