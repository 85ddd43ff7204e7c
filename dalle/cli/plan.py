"""python -m dalle plan: estimate memory, time and the best layout of a training run, without running it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dalle.cli.parser import parse_size


def add(commands: Any) -> None:
    """Add the command to the subparsers of `dalle`."""
    command = commands.add_parser("plan", help="estimate memory, time and best layout of a training")
    command.add_argument("config", type=Path, metavar="CONFIG", help="recipe of stage dalle, prior or diffusion")
    command.add_argument("overrides", nargs="*", metavar="key.path=value", help="options of the recipe to override")
    command.add_argument("--gpus", type=int, default=1, help="number of devices (%(default)s)")
    command.add_argument("--memory", default="80GB", help="memory per device, such as 24GiB (%(default)s)")
    command.add_argument("--spare", type=float, default=0.1, help="fraction of memory to leave free (%(default)s)")
    command.add_argument(
        "--peak", default="312TFLOPS", help="peak per device in run.precision (%(default)s: an A100 in bf16)"
    )
    command.add_argument("--utilization", type=float, default=0.4, help="expected fraction of the peak (%(default)s)")
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from dalle.training.init_from import resolve_recipe
    from dalle.training.planning.plan import Cluster, plan, report
    from dalle.training.planning.unclip import plan_unclip, report_unclip
    from dalle.training.recipe import DALLERecipe, DiffusionRecipe, PriorRecipe

    memory, peak = parse_size(args.memory, "B", "memory"), parse_size(args.peak, "FLOPS", "peak")
    cluster = Cluster(args.gpus, memory, args.spare, peak, args.utilization)
    recipe = resolve_recipe(args.config, args.overrides)
    if isinstance(recipe, (PriorRecipe, DiffusionRecipe)):
        print(report_unclip(plan_unclip(recipe, cluster), recipe, cluster))
        return
    if not isinstance(recipe, DALLERecipe):
        raise ValueError(
            f"{args.config} is of stage {recipe.stage}, and only stages dalle, prior and diffusion can be planned: "
            "`python -m dalle find-batch` measures what fits on this machine"
        )
    print(report(plan(recipe, cluster), recipe))
