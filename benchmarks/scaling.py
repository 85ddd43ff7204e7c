"""What size to train in the time there is: held-out loss of several sizes at several budgets of compute.

    python benchmarks/scaling.py configs/emoji/dalle.yaml

Each of 4 sizes is trained at each of 4 budgets from the beginning, with a learning-rate schedule of its own length: the
loss in the middle of a longer schedule would be worse than a run of that length reaches (Hoffmann et al. 2022, arXiv
2203.15556, section 3.1). Runs that are finished are not run again, so that the study can be interrupted. Written to
--out: results.json, results.md and results.png (with matplotlib, `pip install matplotlib`).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dalle.cli.startup import explain_startup_errors

explain_startup_errors("scaling.py")

import numpy as np
import torch
from machine import describe

import train
from dalle.cli.parser import CommandLine
from dalle.cli.tool import count, positive_number, run_tool
from dalle.config import flat, to_dict
from dalle.files import check_folder
from dalle.models.dalle import DALLE
from dalle.training.init_config import resolve_recipe
from dalle.training.metrics_log import read_metrics
from dalle.training.planning.plan import operations
from dalle.training.planning.setup import ModelSize
from dalle.training.recipe import DALLERecipe

SIZES = ("128x4", "192x6", "256x8", "384x10")  # width x depth; heads of 64 channels
TERA = 1e12
# Options of the recipe that the study chooses for each run -> by which of its own
CHOSEN = {
    **dict.fromkeys(("model.transformer.width", "model.transformer.depth", "model.transformer.heads"), "--sizes"),
    **dict.fromkeys(("run.steps", "run.tokens"), "--budgets"),
    "optim.lr": "--lr",
    "run.dir": "--out",
}


@dataclass(frozen=True)
class Result:
    """One run: its size, its compute in floating-point operations, and what it reached on the validation split."""

    width: int
    depth: int
    parameters: int
    budget: float
    steps: int
    images: int
    image_nats: float
    text_nats: float


@dataclass(frozen=True)
class Plan:
    """One run before it is trained: the options of its training, and the recipe that they give."""

    width: int
    depth: int
    budget: float
    options: list[str]
    recipe: DALLERecipe

    @property
    def folder(self) -> Path:
        return self.recipe.run.dir

    def result(self) -> Result | None:
        """What the run reached; None: it is not finished.

        Raises:
            ValueError: the folder has the result of another recipe, or a damaged one.
        """
        file = self.folder / "scaling.json"
        if not file.is_file():
            return None
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            before, result = content["recipe"], Result(**content["result"])
            if not isinstance(before, dict) or not math.isfinite(result.image_nats):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{file} is damaged, or of an earlier version: delete {self.folder}") from None
        was, now = flat(before), flat(_compared(self.recipe))
        if changed := sorted(key for key in was | now if was.get(key) != now.get(key)):
            key, more = changed[0], f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            raise ValueError(
                f"{self.folder} was trained with {key}={was.get(key)}, not {now.get(key)}{more}: give another --out"
            )
        return result

    def train(self) -> Result:
        """Train, or go on with a run that was interrupted."""
        recipe = self.recipe
        print(
            f"== width {self.width}, depth {self.depth}, {self.budget / TERA:g} TFLOP: {recipe.run.steps} steps",
            flush=True,
        )
        code = train.main([*self.options, "resume=auto"])
        if code != 0:
            raise SystemExit(code)  # train.py has said why
        curves = read_metrics(self.folder / "metrics.jsonl").curves
        with torch.device("meta"):
            parameters = sum(parameter.numel() for parameter in DALLE(recipe.model).parameters())
        image_nats, text_nats = (curves[f"validation/{name}_nats"].values[-1] for name in ("image", "text"))
        steps = recipe.run.steps
        images = steps * recipe.run.batch_size
        result = Result(self.width, self.depth, parameters, self.budget, steps, images, image_nats, text_nats)
        content = {"recipe": _compared(recipe), "result": asdict(result)}
        (self.folder / "scaling.json").write_text(json.dumps(content), encoding="utf-8")
        return result


def main() -> None:
    parser = CommandLine(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("recipe", type=Path, help="recipe of stage dalle")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="options of the recipe")
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=_size,
        default=[_size(size) for size in SIZES],
        metavar="WIDTHxDEPTH",
        help=f"default: {' '.join(SIZES)}",
    )
    parser.add_argument(
        "--budgets", nargs="+", type=positive_number, default=[8, 16, 32, 64], metavar="TFLOP", help="%(default)s"
    )
    parser.add_argument(
        "--lr", type=positive_number, default=2e-3, help="at width 256; falls with 1/sqrt(width) (%(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/scaling"), help="folder (%(default)s)")
    args = parser.parse_intermixed_args()
    check_folder(args.out)
    for key in (override.partition("=")[0] for override in args.overrides):
        if key in CHOSEN:
            raise ValueError(f"{key} is chosen for each run: give {CHOSEN[key]} instead")
    _resolved([str(args.recipe), *args.overrides])  # of another stage, its options would be unknown ones
    budgets, sizes = dict.fromkeys(args.budgets), dict.fromkeys(args.sizes)  # each once
    plans = [_plan(args, width, depth, budget * TERA) for budget in budgets for width, depth in sizes]
    for plan in plans:  # what cannot be used is said before anything is trained
        plan.result()
    results = []
    for plan in plans:
        results.append(plan.result() or plan.train())
        _write(args.out, results, str(args.recipe), args.overrides)


def _size(text: str) -> tuple[int, int]:
    """Width and depth, as the `type` of an option."""
    width, _, depth = text.partition("x")
    return count(width), count(depth)


def _plan(args: argparse.Namespace, width: int, depth: int, budget: float) -> Plan:
    """The run of one size with one budget."""
    folder = args.out / f"{width}x{depth}-{budget / TERA:g}"
    options = [
        str(args.recipe),
        *args.overrides,
        f"model.transformer.width={width}",
        f"model.transformer.depth={depth}",
        f"model.transformer.heads={max(1, width // 64)}",
        f"run.dir={folder}",
        f"optim.lr={args.lr * math.sqrt(256 / width):.3g}",
    ]
    recipe = _resolved(options)
    step = operations(ModelSize.of(recipe.model), checkpointing=False) * recipe.run.batch_size
    steps = round(budget / step)
    if steps < 1:
        raise ValueError(
            f"{budget / TERA:g} TFLOP is less than a step of {width}x{depth}, {step / TERA:.2g} TFLOP: give a larger "
            "--budgets, or a smaller run.batch_size"
        )
    options += [
        f"run.steps={steps}",
        f"optim.warmup={min(100, max(1, steps // 10))}",
        *(f"run.{key}={steps}" for key in ("validate_every", "sample_every", "save_every")),
        "run.keep_best=null",
        "run.tracker=none",
    ]
    return Plan(width, depth, budget, options, _resolved(options))


def _resolved(options: list[str]) -> DALLERecipe:
    recipe = resolve_recipe(Path(options[0]), options[1:])
    if not isinstance(recipe, DALLERecipe):
        raise ValueError(f"{options[0]} is of stage {recipe.stage}: give a recipe of stage dalle")
    return recipe


def _compared(recipe: DALLERecipe) -> dict[str, Any]:
    """What a result depends on: the recipe but for the place of the run."""
    content = to_dict(recipe)
    del content["run"]["dir"]
    return json.loads(json.dumps(content, default=str))


def _best(results: list[Result]) -> list[tuple[float, float, float]]:
    """Of each budget: the size and the loss at the bottom of a parabola through loss over log size.

    The bottom of the best three neighboring sizes (approach 2 of Hoffmann et al.); the best size itself where it is the
    smallest or the largest.
    """
    found = []
    for budget in sorted({result.budget for result in results}):
        row = sorted((result for result in results if result.budget == budget), key=lambda result: result.parameters)
        best = min(range(len(row)), key=lambda index: row[index].image_nats)
        size, nats = float(row[best].parameters), row[best].image_nats
        if 0 < best < len(row) - 1:
            near = row[best - 1 : best + 2]
            x = np.log([result.parameters for result in near])
            curve = np.polyfit(x - x[1], [result.image_nats for result in near], 2)
            bottom = -curve[1] / (2 * curve[0])
            size, nats = float(np.exp(x[1] + bottom)), float(np.polyval(curve, bottom))
        found.append((budget, size, nats))
    return found


def _write(out: Path, results: list[Result], recipe: str, overrides: list[str]) -> None:
    about = describe(torch.device("cpu")) | {"recipe": recipe, "overrides": overrides}
    content = {"about": about, "results": [asdict(result) for result in results], "best": _best(results)}
    (out / "results.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    budgets = sorted({result.budget for result in results})
    sizes = sorted({(result.parameters, result.width, result.depth) for result in results})
    lines = ["| width x depth | parameters | " + " | ".join(f"{budget / TERA:g} TFLOP" for budget in budgets) + " |"]
    lines.append("|---" * (2 + len(budgets)) + "|")
    reached = {(result.width, result.depth, result.budget): result for result in results}
    for parameters, width, depth in sizes:
        runs = [reached.get((width, depth, budget)) for budget in budgets]
        cells = [f"{run.image_nats:.3f} ({run.images:,} images)" if run else "" for run in runs]
        lines.append(f"| {width} x {depth} | {parameters / 1e6:.1f} M | " + " | ".join(cells) + " |")
    lines += ["", "Best size by a parabola through the best three:", ""]
    lines += [
        f"- {b / TERA:g} TFLOP: {size / 1e6:.1f} M parameters, {nats:.3f} nats" for b, size, nats in _best(results)
    ]
    (out / "results.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _plot(out / "results.png", results)


def _plot(file: Path, results: list[Result]) -> None:
    try:
        import matplotlib
    except ImportError:
        print("no results.png: pip install matplotlib")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 4))
    for width, depth in sorted({(result.width, result.depth) for result in results}):
        runs = sorted((r for r in results if (r.width, r.depth) == (width, depth)), key=lambda run: run.budget)
        label = f"{width} x {depth}, {runs[0].parameters / 1e6:.1f} M"
        axis.plot([run.budget for run in runs], [run.image_nats for run in runs], "o-", label=label)
    best = _best(results)
    axis.plot([budget for budget, _, _ in best], [nats for _, _, nats in best], "k--", label="best size")
    axis.set(
        xscale="log", xlabel="compute of a run, floating-point operations", ylabel="nats per image token, validation"
    )
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(run_tool(main))
