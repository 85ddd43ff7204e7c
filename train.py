#!/usr/bin/env python3
"""Train any stage from one YAML: python train.py configs/emoji/dalle.yaml optim.lr=1e-4 run.dir=runs/mine

`train` below is the loop of every stage; what differs between the stages is in dalle/training/tasks/.
Several processes: torchrun --nproc_per_node 2 train.py CONFIG ... (or, on GPUs, accelerate launch).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from dalle.cli.threads import wait_briefly

wait_briefly()  # before torch is imported

# isort: split
import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from dalle.cli.interrupt import SignalHandler
from dalle.cli.parser import CommandLine, print_error
from dalle.config import dump, to_dict
from dalle.data import open_data, open_training
from dalle.data.bad_records import BadCounter
from dalle.data.loader import batches, evaluation_batches, lost_worker
from dalle.data.summary import changed, summary_of
from dalle.device import out_of_memory
from dalle.training.checkpoint import checkpoint
from dalle.training.checkpoint.best import Best, NotANumber, check_numbers, validations
from dalle.training.checkpoint.checkpoint import Checkpoint
from dalle.training.checkpoint.latest import load_newest
from dalle.training.distributed import powersgd
from dalle.training.distributed.powersgd import PowerSGD
from dalle.training.init_from import prepare_initial, resolve_recipe
from dalle.training.optim import WeightAverage, adamw
from dalle.training.recipe import DALLERecipe, LoopRecipe, TextTokenizerRecipe, describe_recipes
from dalle.training.run.compiling import compile_blocks
from dalle.training.run.log import RunLog, start_accelerator, start_sharding
from dalle.training.run.malloc import keep_freed
from dalle.training.run.precision import settle_precision
from dalle.training.run.run_dir import describe, open_folder
from dalle.training.skipped_steps import Outcomes, Stop
from dalle.training.tasks import build_task
from dalle.training.tasks.text_tokenizer import train_text_tokenizer
from dalle.training.train_step import accumulate, evaluated, mean_figures, seed_noise, step, step_figures

_SMALLER = (
    "set run.accumulation larger or run.batch_size smaller (python -m dalle find-batch tells what fits), or "
    "model.transformer.checkpoint_activations=true; checkpoints are whole, go on with resume=true"
)


def train(recipe: LoopRecipe) -> int:
    """Train to the last update, or until a signal; returns the exit code."""
    recipe = settle_precision(recipe)
    run = recipe.run
    accelerator = start_accelerator(run)
    sharding = start_sharding(run, accelerator)
    rank, world = accelerator.process_index, accelerator.num_processes
    if isinstance(recipe, DALLERecipe) and recipe.init_from is not None:
        with accelerator.main_process_first():
            prepare_initial(recipe)
    torch.manual_seed(run.seed)
    task = build_task(recipe, accelerator.device, sharding)
    uncompiled = compile_blocks(task.model, accelerator.device) if run.compile else None
    optimizers = {phase.name: accelerator.prepare(adamw(phase.module, phase.optim)) for phase in task.phases}
    average = WeightAverage(task.model, recipe.optim.ema) if recipe.optim.ema else None
    told = {phase.name: PowerSGD(run.powersgd) for phase in task.phases} if run.powersgd and world > 1 else {}
    alike = accelerator.is_main_process or sharding is not None  # takes part in what a single process could do alone
    data = open_training(recipe.data, task.image_size)
    held_out = open_data(recipe.data, "validation", task.image_size)
    bad = BadCounter(recipe.data.max_bad)

    lock, resume = open_folder(recipe, accelerator)
    start = 0
    if resume:
        saved = load_newest(run.dir, accelerator)
        start = checkpoint.restore(saved, task.state, average, optimizers, accelerator.scaler, recipe.model)
        powersgd.read(saved.folder, told, rank, world, accelerator.device)
        bad.merge(saved.bad or [])
    if accelerator.is_main_process:
        describe(recipe)
    accelerator.wait_for_everyone()

    best = Best(recipe.stage, run.keep_best, run.stop_after)

    def save(update: int) -> None:
        """Write a checkpoint, and the newest weights as a folder that `dalle` loads, unless others were better."""
        outcomes.settle(update)
        bad.merge(gather_object(list(bad.names)))
        now = Checkpoint.of(
            update, task.state, average, optimizers, accelerator.scaler, to_dict(recipe.model), list(bad.names)
        )
        with checkpoint.explained(run.dir, update):
            folder = checkpoint.save(run.dir, now, run.keep, accelerator, told, best.update)
            if accelerator.is_main_process and best.is_exported(update):
                weights = task.model.state_dict() if average is None else average.state
                task.export(run.dir / "model", weights if sharding is None else checkpoint.exported(folder))
        accelerator.wait_for_everyone()

    def validate(update: int) -> dict[str, float]:
        figures: dict[str, float] = {}
        if alike:
            with evaluated(task.model, average) as model:
                seen = evaluation_batches(held_out, 32, limit=run.validation_images, report=bad.add)
                figures = task.validate(model, seen)
                log.validation(update, figures)
        return dict(broadcast_object_list([figures])[0])  # so that all agree on the best

    def judge(update: int) -> bool:
        """Validate; returns whether these weights are the best so far."""
        try:
            figures = validate(update)
        except Exception:
            if world == 1:  # elsewhere the others wait
                save(update)
            raise
        check_numbers(update, figures, run.dir)
        return best.add(update, figures)

    def take_up() -> None:
        """What is known of the best weights of a run that goes on, which its model folder has."""
        for number, figures in broadcast_object_list([validations(log.file)])[0]:
            best.add(number, figures)
        if best.update is None:
            return
        folder = checkpoint.folder_of(run.dir, best.update)
        if not folder.is_dir():
            log.say(f"the checkpoint of the best weights ({best}) is gone: the next validation is the best")
            best.forget()
        elif accelerator.is_main_process:
            kept = checkpoint.exported(folder)
            task.export(run.dir / "model", kept if sharding else {**task.model.state_dict(), **kept})

    def draw(update: int) -> None:
        if alike:
            with evaluated(task.model, average) as model:
                samples = task.pictures(model, next(iter(evaluation_batches(held_out, 32, limit=32, report=bad.add))))
            if samples is not None and accelerator.is_main_process:
                log.samples(update, samples)
        accelerator.wait_for_everyone()

    stream = batches(
        data, batch_size=run.batch_size, seed=run.seed, start=start, rank=rank, world=world, workers=run.workers
    )
    log = RunLog(recipe, accelerator, start, task)
    if recipe.resume == "auto":
        log.say(f"resume=auto: goes on after update {start}" if resume else "resume=auto: a run that begins")
    if accelerator.is_main_process:
        summary = summary_of(data, held_out)
        log.say(str(summary))
        if (other := changed(summary, run.dir / "data.json")) is not None:
            log.say(other)
    if uncompiled is not None:
        log.say(f"run.compile: {uncompiled}; training goes on uncompiled")
    outcomes, stops, update = Outcomes(log, run.max_skipped, run.dir), Stop(accelerator), start
    task.model.train()
    with lock, SignalHandler() as interrupt, closing(log):  # an error's line begins after the bar's
        if resume:
            take_up()
            # It was told to end before it could validate
            if start % run.validate_every == 0 and best.validated < start and (judge(start) or best.over):
                save(start)
        while update < run.updates and not best.over:
            seed_noise(run.seed, update, rank)
            with log.waiting():
                batch = next(stream)
            bad.add(batch.bad)
            micro = [task.inputs(part) for part in batch.split(run.accumulation)]
            figures: dict[str, float] = {}
            norms: dict[str, Tensor] = {}  # of the gradient of each phase, on the device
            to_log = run.logs(update)
            for phase in task.active(update):
                total, noted = accumulate(task, phase, micro, accelerator, update)
                optimizer, how = optimizers[phase.name], told.get(phase.name)
                norm = step(phase, total, optimizer, accelerator, update, run.updates, how)
                norms[phase.name] = norm
                if task.gathers and not norm.isfinite():
                    break
                if to_log:
                    figures |= mean_figures(noted, accelerator) | {phase.name + "_gradient": norm.item()}
                    figures |= step_figures(phase, optimizer, how)
            update += 1
            applied = next(iter(norms.values())).isfinite()  # where only the last phase was not, those before were
            if task.gathers and not applied:
                task.discard_update()
            else:
                task.after_update(lambda t: accelerator.reduce(t, reduction="sum"))
            if average is not None:
                average.update(update, applied)
            outcomes.add(update, norms)
            taken = outcomes.settle(update if to_log else update - 1)
            log.step()
            if to_log and taken:
                log.train(update, figures | task.figures(lambda t: accelerator.reduce(t, reduction="sum")))
            stop = stops(interrupt.signal is not None)
            last, improved = update == run.updates, False
            if last or (update % run.validate_every == 0 and not stop):
                improved = judge(update)
            last = last or best.over
            if update % run.save_every == 0 or last or stop or improved:
                save(update)
            if update % run.sample_every == 0 or last:
                draw(update)
            if update % run.validate_every == 0:
                log.report()
            if stop:
                break
    if bad.names:
        log.say(bad.report())
    if best.over:
        log.say(f"run.stop_after: {best.since} validations since the best, {best}; ended at update {update}")
    elif update < run.updates:
        log.say(f"stopped at update {update}; go on with: python train.py ... run.dir={run.dir} resume=true")
        return interrupt.code
    elif update == start:
        log.say(f"nothing to train: update {start} is done, and run.updates is {run.updates}")
        return 0
    newest = f" (the best, {best}; the newest: {checkpoint.folder_of(run.dir, update)})"
    log.say(f"weights: {run.dir / 'model'}{newest if best.update is not None else ''}")
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandLine("train.py", description=(__doc__ or "").partition("\n")[0], add_help=False)
    parser.add_argument("config", nargs="?", type=Path, help="a YAML under configs/ or tokenizers/")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="options of the YAML to change")
    parser.add_argument("--print-config", action="store_true", help="print the whole resolved config and stop")
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    parser.add_argument("-h", "--help", action="store_true", help="show every option with type, default and meaning")
    args = parser.parse_intermixed_args(argv)  # options may stand anywhere among the overrides
    if args.help:
        print(f"{parser.format_help()}\n{describe_recipes(args.config)}")
        raise SystemExit(0)
    if args.config is None:
        parser.error("which config? for example: python train.py configs/emoji/dalle.yaml")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, validate, train. What a user can cause is one line (a line each for a config) and exit code 2."""
    show_traceback = False
    try:
        args = parse(argv)
        show_traceback = args.traceback
        recipe = resolve_recipe(args.config, args.overrides)
        if args.print_config:
            print(dump(recipe), end="")
            return 0
        if isinstance(recipe, TextTokenizerRecipe):
            train_text_tokenizer(recipe)
            return 0
        keep_freed()
        return train(recipe)
    except NotANumber as error:
        print_error("train.py", error)
        return error.code
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        if show_traceback:
            raise
        short = out_of_memory(error)
        if short is not None:
            return print_error("train.py", f"{short}: {_SMALLER}")
        reported = lost_worker(error) if isinstance(error, RuntimeError) else error
        if reported is None:
            raise
        return print_error("train.py", reported)
    except KeyboardInterrupt:  # before the first update, or a second one while a checkpoint was written
        print("train.py: stopped; checkpoints that are there are whole", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
