#!/usr/bin/env python3
"""Train any stage from one YAML: python train.py configs/emoji/dalle.yaml optim.lr=1e-4 run.dir=runs/mine

`train` below is the loop of every stage; what differs between the stages is in dalle/training/tasks/, what a run has
and does now and then in dalle/training/state.py.
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
from torch import Tensor

from dalle.cli.interrupt import SignalHandler
from dalle.cli.parser import CommandLine, print_error
from dalle.config import dump
from dalle.data.loader import describe_lost_worker
from dalle.device import out_of_memory
from dalle.training.checkpoint.best import NotANumber
from dalle.training.init_from import resolve_recipe
from dalle.training.recipe import LoopRecipe, TextTokenizerRecipe, describe_recipes
from dalle.training.run.malloc import keep_freed
from dalle.training.state import Run
from dalle.training.tasks.text_tokenizer import train_text_tokenizer
from dalle.training.train_step import accumulate, mean_figures, optimizer_step, step_figures

_SMALLER = (
    "set run.accumulation larger or run.batch_size smaller (python -m dalle find-batch tells what fits), or "
    "model.transformer.checkpoint_activations=true; checkpoints are whole, go on with resume=true"
)


def train(recipe: LoopRecipe) -> int:
    """Train to the last step, or until a signal; returns the exit code."""
    run = Run(recipe)
    task, accelerator = run.task, run.accelerator
    with run.lock, SignalHandler() as signals, closing(run.log):  # an error's line begins after the bar's
        run.resume()
        for step in run.steps():
            batch = run.next_batch()
            micro = [task.inputs(part) for part in batch.split(run.options.accumulation)]
            figures: dict[str, float] = {}
            norms: dict[str, Tensor] = {}  # of the gradient of each phase, on the device
            for phase in task.active(step):  # one, or a generator and its discriminator
                loss, losses = accumulate(task, phase, micro, accelerator, step)
                optimizer, compressor = run.optimizers[phase.name], run.compressors.get(phase.name)
                norms[phase.name] = norm = optimizer_step(
                    phase, loss, optimizer, accelerator, step, run.options.steps, compressor
                )
                if task.needs_sync and not norm.isfinite():
                    break
                if run.logs(step):
                    figures |= mean_figures(losses, accelerator) | {phase.name + "_gradient": norm.item()}
                    figures |= step_figures(phase, optimizer, compressor)
            run.finish_step(norms, figures)
            stop = run.told_to_stop(signals.signal is not None)
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


def parse(argv: Sequence[str] | None, program: str) -> argparse.Namespace:
    parser = CommandLine(program, description=(__doc__ or "").partition("\n")[0], add_help=False)
    parser.add_argument("config", nargs="?", type=Path, help="a YAML, or the name of one that ships: emoji/dalle")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="options of the YAML to change")
    parser.add_argument("--print-config", action="store_true", help="print the whole resolved config and stop")
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    parser.add_argument("-h", "--help", action="store_true", help="show every option with type, default and meaning")
    args = parser.parse_intermixed_args(argv)  # options may stand anywhere among the overrides
    if args.help:
        print(f"{parser.format_help()}\n{describe_recipes(args.config)}")
        raise SystemExit(0)
    if args.config is None:
        parser.error("which config? for example emoji/dalle, or the path of a YAML")
    return args


def main(argv: Sequence[str] | None = None, program: str = "train.py") -> int:
    """Parse, validate, train; `dalle train` too. What a user can cause is one line (of a config, more), code 2."""
    show_traceback = False
    try:
        args = parse(argv, program)
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
        print_error(program, error)
        return error.code
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        if show_traceback:
            raise
        short = out_of_memory(error)
        if short is not None:
            return print_error(program, f"{short}: {_SMALLER}")
        reported = describe_lost_worker(error) if isinstance(error, RuntimeError) else error
        if reported is None:
            raise
        return print_error(program, reported)
    except KeyboardInterrupt:  # before the first step, or a second one while a checkpoint was written
        print(f"{program}: stopped; checkpoints that are there are whole", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
