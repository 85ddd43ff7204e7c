"""python -m dalle find-batch: find the largest micro-batch that fits, by training with it on this machine."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dalle.cli.parser import parse_size

if TYPE_CHECKING:
    from dalle.training.find_batch import Trial


def add(commands: Any) -> None:
    """Add the command to the subparsers of `dalle`."""
    command = commands.add_parser(
        "find-batch", help="find the largest micro-batch that fits, by training with it on this machine"
    )
    command.add_argument("config", type=Path, metavar="CONFIG", help="recipe to train")
    command.add_argument("overrides", nargs="*", metavar="key.path=value", help="options of the recipe to override")
    command.add_argument("--memory", help="memory limit, such as 8GB or 24GiB (default: 90%% of what is free)")
    command.add_argument(
        "--processes", type=int, default=1, metavar="N", help="processes that share run.batch_size (%(default)s)"
    )
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from dalle.training.find_batch import find_batch
    from dalle.training.init_config import resolve_recipe
    from dalle.training.recipe import TextTokenizerRecipe

    limit = None if args.memory is None else int(parse_size(args.memory, "B", "memory"))
    # A run's folder, for published weights that are converted first
    with tempfile.TemporaryDirectory(prefix="dalle-find-batch-") as scratch:
        recipe = resolve_recipe(args.config, [*args.overrides, f"run.dir={json.dumps(scratch)}"])
        if isinstance(recipe, TextTokenizerRecipe):
            raise ValueError(f"{args.config} is of stage text_tokenizer, which is trained without batches")
        found = find_batch(recipe, limit, args.processes, _print_trial, _print_start)
    print(found.options)


def _print_start(images: int) -> None:
    print(f"trying {images} image{'s' * (images > 1)} at a time ...", file=sys.stderr, flush=True)


def _print_trial(trial: Trial) -> None:
    """Print progress to stderr; stdout has the result only."""
    images = f"{trial.images} image{'s' * (trial.images > 1)} at a time"
    print(f"{images}: {'fits' if trial.fits else 'does not fit'} ({trial.detail})", file=sys.stderr, flush=True)
