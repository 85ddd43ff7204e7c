"""python -m dalle plan: memory, time and layout of a training, before it is paid for."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

_UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}


def add(commands: Any) -> None:
    """Add the command to the subparsers of `dalle`."""
    command = commands.add_parser("plan", help="memory, time and layout of a training, before it is paid for")
    command.add_argument("config", type=Path, metavar="CONFIG", help="recipe of stage dalle")
    command.add_argument("overrides", nargs="*", metavar="key.path=value", help="options of the recipe to change")
    command.add_argument("--gpus", type=int, default=1, help="devices (%(default)s)")
    command.add_argument("--memory", default="80GB", help="of each: 80GB, 24GiB (%(default)s)")
    command.add_argument("--spare", type=float, default=0.1, help="share of it that stays free (%(default)s)")
    command.add_argument("--peak", default="312TFLOPS", help="of each, in run.precision (%(default)s: an A100 in bf16)")
    command.add_argument("--utilisation", type=float, default=0.4, help="share of the peak expected (%(default)s)")
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from dalle.training.plan import Machine, plan, report
    from dalle.training.recipe import DALLERecipe, load_recipe

    memory, peak = quantity(args.memory, "B", "memory"), quantity(args.peak, "FLOPS", "peak")
    machine = Machine(args.gpus, memory, args.spare, peak, args.utilisation)
    recipe = load_recipe(args.config, args.overrides)
    if not isinstance(recipe, DALLERecipe):
        raise ValueError(f"{args.config} is of stage {recipe.stage}: give a recipe of stage dalle")
    print(report(plan(recipe, machine), recipe))


def quantity(text: str, unit: str, option: str) -> float:
    """A number with a unit: 80GB, 24 GiB, 312TFLOPS.

    Raises:
        ValueError: it is none.
    """
    prefixes = _UNITS | (_BINARY if unit == "B" else {})
    found = re.fullmatch(rf"([\d.]+(?:e\d+)?)\s*({'|'.join(prefixes)})(?:{unit})?", text.strip())
    try:
        value = float(found[1]) * prefixes[found[2]] if found else 0.0
    except ValueError:
        value = 0.0
    if value <= 0:
        example = "80GB" if unit == "B" else "312TFLOPS"
        raise ValueError(f"--{option} is {text!r}: expected a number with a unit, {example}")
    return value
