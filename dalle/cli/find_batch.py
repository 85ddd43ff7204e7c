"""python -m dalle find-batch: the largest micro-batch that fits this machine, found by training on it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dalle.cli.parser import parse_size

if TYPE_CHECKING:
    from dalle.training.find_batch import Trial


def add(commands: Any) -> None:
    """Add the command to the subparsers of `dalle`."""
    command = commands.add_parser(
        "find-batch", help="the largest micro-batch that fits this machine, found by training on it"
    )
    command.add_argument("config", type=Path, metavar="CONFIG", help="recipe that train.py takes")
    command.add_argument("overrides", nargs="*", metavar="key.path=value", help="options of the recipe to change")
    command.add_argument("--memory", help="that may be taken: 8GB, 24GiB (nine tenths of what is free)")
    command.add_argument(
        "--processes", type=int, default=1, metavar="N", help="that run.batch_size is shared by (%(default)s)"
    )
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from dalle.training.find_batch import find_batch
    from dalle.training.init_from import resolve_recipe
    from dalle.training.recipe import TextTokenizerRecipe

    limit = None if args.memory is None else int(parse_size(args.memory, "B", "memory"))
    recipe = resolve_recipe(args.config, args.overrides)
    if isinstance(recipe, TextTokenizerRecipe):
        raise ValueError(f"{args.config} is of stage text_tokenizer, which is trained without batches")
    found = find_batch(recipe, limit, args.processes, _print_trial)
    print(found.options)


def _print_trial(trial: Trial) -> None:
    """A line of progress, beside the result."""
    images = f"{trial.images} image{'s' * (trial.images > 1)} at a time"
    print(f"{images}: {'fits' if trial.fits else 'does not fit'} ({trial.detail})", file=sys.stderr, flush=True)
