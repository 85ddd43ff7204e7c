"""python -m dalle plan: estimate memory and time of a training run, or of sampling from a model, without running it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dalle.cli.parser import parse_size
from dalle.config import apply_overrides


def add(commands: Any) -> None:
    """Add the command to the subparsers of `dalle`."""
    command = commands.add_parser("plan", help="estimate memory, time and best layout of a training, or of sampling")
    command.add_argument(
        "config",
        metavar="CONFIG",
        help="recipe of stage dalle, prior or diffusion; or a model that samples tokens, to plan sampling: a folder of "
        "ours, published files (of a language model its config.json and text tokenizer suffice) or a hub id",
    )
    command.add_argument(
        "overrides", nargs="*", metavar="key.path=value", help="options of the recipe, or facts of a model, to override"
    )
    command.add_argument("--gpus", type=int, default=1, help="number of devices (%(default)s)")
    command.add_argument("--memory", default="80GB", help="memory per device, such as 24GiB (%(default)s)")
    command.add_argument("--spare", type=float, default=0.1, help="fraction of memory to leave free (%(default)s)")
    command.add_argument(
        "--peak", default="312TFLOPS", help="peak per device in run.precision (%(default)s: an A100 in bf16)"
    )
    command.add_argument("--utilization", type=float, default=0.4, help="expected fraction of the peak (%(default)s)")
    command.add_argument(
        "--bandwidth", default="2TB", help="memory read per second and device, for sampling (%(default)s: an A100)"
    )
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from dalle.training.init_config import resolve_recipe
    from dalle.training.planning.plan import Cluster, plan, report
    from dalle.training.planning.sampling import plan_sampling
    from dalle.training.planning.unclip import plan_unclip, report_unclip
    from dalle.training.recipe import DALLERecipe, DiffusionRecipe, PriorRecipe

    memory, peak = parse_size(args.memory, "B", "memory"), parse_size(args.peak, "FLOPS", "peak")
    cluster = Cluster(args.gpus, memory, args.spare, peak, args.utilization)
    bandwidth = parse_size(args.bandwidth, "B", "bandwidth")
    if not _is_recipe(args.config):
        print(plan_sampling(args.config, apply_overrides({}, args.overrides), cluster, bandwidth))
        return
    recipe = resolve_recipe(Path(args.config), args.overrides, weights=False)
    if isinstance(recipe, (PriorRecipe, DiffusionRecipe)):
        print(report_unclip(plan_unclip(recipe, cluster), recipe, cluster))
        return
    if not isinstance(recipe, DALLERecipe):
        raise ValueError(
            f"{args.config} is of stage {recipe.stage}, and only stages dalle, prior and diffusion can be planned: "
            "`python -m dalle find-batch` measures what fits on this machine"
        )
    if recipe.grpo is not None:
        raise ValueError(
            "grpo draws images in each step, which cannot be planned: set grpo=null for the training before it, or let "
            "`python -m dalle find-batch` measure what fits on this machine"
        )
    print(report(plan(recipe, cluster), recipe))


def _is_recipe(source: str) -> bool:
    """Whether what is to be planned is a recipe; else it is a model, local or on the hub."""
    from dalle.training.recipe.shipped import shipped_recipes

    path = Path(source)
    if path.is_dir():
        return False
    if path.is_file() or path.suffix in (".yaml", ".yml"):
        return path.suffix in (".yaml", ".yml")
    # A name: of a recipe that ships (perhaps misspelled), else of a model, which is not there or on the hub
    parts = source.split("/")
    folders = {name.partition("/")[0] for name in shipped_recipes()}
    return parts[0] in folders or (len(parts) < 2 and not source.startswith("~"))
