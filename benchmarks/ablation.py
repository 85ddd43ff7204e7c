r"""Which options of a recipe help: each variant against the recipe as it is, in runs of the same length and seed.

    python benchmarks/ablation.py configs/emoji/dalle.yaml run.steps=800 \
        --variant "no dropout" model.transformer.dropout=0 --variant "no BPE dropout" bpe_dropout=0

Runs that are finished are not run again, so that it can be interrupted. The table has the last validation of each run
and its last training losses; the difference of the two is what a model has learned by heart.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from dalle.cli.startup import explain_startup_errors

explain_startup_errors("ablation.py")

import train
from dalle.cli.parser import CommandLine
from dalle.cli.tool import run_tool
from dalle.files import check_folder
from dalle.training.checkpoint.best import METRICS
from dalle.training.init_config import resolve_recipe
from dalle.training.metrics_log import read_metrics
from dalle.training.recipe import LoopRecipe


def main() -> None:
    parser = CommandLine(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="options of all runs")
    parser.add_argument(
        "--variant",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME", "key=value"),
        help="a run with other options",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"), help="folder (%(default)s)")
    parser.add_argument(
        "--metrics", nargs="+", metavar="NAME", help="columns such as train/image (default: those of the validation)"
    )
    args = parser.parse_args()
    check_folder(args.out)
    if not isinstance(recipe := resolve_recipe(args.recipe, args.overrides), LoopRecipe):
        raise ValueError(f"{args.recipe} is of stage {recipe.stage}, which has no metrics: give another recipe")
    variants = {"as it is": _options(args, "as it is", [])}
    for name, *options in args.variant:
        if name in variants:
            raise ValueError(f"--variant {name!r} is given twice: choose another name for one")
        variants[name] = _options(args, name, options)
    recipes = {name: resolve_recipe(args.recipe, options) for name, options in variants.items()}
    folders: dict[Path, str] = {}
    for name, recipe in recipes.items():
        if recipe.run.steps < 1:
            raise ValueError(f"run.steps is {recipe.run.steps}: train 1 step at least")
        known = [f"validation/{metric}" for metric in METRICS[recipe.stage]]
        # What a step logs depends on the options; a column of it is looked for in the log of the first run
        if wrong := [metric for metric in args.metrics or [] if metric not in known and metric[:6] != "train/"]:
            raise ValueError(f"--metrics has no {wrong[0]!r}: choose from {', '.join(known)}, or train/...")
        first = folders.setdefault(recipe.run.dir, name)
        if first != name:
            raise ValueError(f"--variant {name!r} and {first!r} share the folder {recipe.run.dir}: choose another name")
    rows = {}
    for name, options in variants.items():
        rows[name] = _run(args.recipe, name, options)
        _write(args.out / "results.md", rows, args.metrics)


def _options(args: argparse.Namespace, name: str, options: list[str]) -> list[str]:
    """The options of the recipe in the run of a variant."""
    folder = args.out / re.sub(r"\W+", "-", name)
    return [
        *args.overrides,
        *options,
        f"run.dir={folder}",
        "run.tracker=none",
        "run.keep_best=null",
        "resume=auto",
    ]


def _run(recipe: Path, name: str, options: list[str]) -> dict[str, float]:
    """Train one variant, or go on with it; returns its last metrics."""
    print(f"== {name}: {' '.join(options)}", flush=True)
    code = train.main([str(recipe), *options])
    if code != 0:
        raise SystemExit(code)  # train.py has said why
    folder = resolve_recipe(recipe, options).run.dir
    return {name: curve.values[-1] for name, curve in read_metrics(folder / "metrics.jsonl").curves.items()}


def _write(file: Path, rows: dict[str, dict[str, float]], metrics: list[str] | None) -> None:
    first = next(iter(rows.values()))
    names = metrics or [key for key in first if key.startswith("validation/")]
    if wrong := [name for name in names if name not in first]:
        raise ValueError(f"no run logs {wrong[0]}: choose from {', '.join(first)}; the run is kept, the table is not")
    lines = [
        "| | " + " | ".join(name.removeprefix("validation/") for name in names) + " |",
        "|---" * (1 + len(names)) + "|",
    ]
    for row, found in rows.items():  # the options of a variant may leave a metric out
        cells = [f"{found[name]:.4g}" if name in found else "-" for name in names]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines), flush=True)


if __name__ == "__main__":
    sys.exit(run_tool(main))
