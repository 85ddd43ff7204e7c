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
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from machine import describe

import train
from dalle.models.dalle import DALLE
from dalle.training.init_config import resolve_recipe
from dalle.training.metrics_log import read_metrics
from dalle.training.planning.plan import operations
from dalle.training.planning.setup import ModelSize
from dalle.training.recipe import DALLERecipe

SIZES = ("128x4", "192x6", "256x8", "384x10")  # width x depth; heads of 64 channels
TERA = 1e12


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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("recipe", type=Path, help="recipe of stage dalle")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="options of the recipe")
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="WIDTHxDEPTH", help="default: %(default)s")
    parser.add_argument(
        "--budgets", nargs="+", type=float, default=[8, 16, 32, 64], metavar="TFLOP", help="%(default)s"
    )
    parser.add_argument("--lr", type=float, default=2e-3, help="at width 256; falls with 1/sqrt(width) (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/scaling"), help="folder (%(default)s)")
    args = parser.parse_intermixed_args()
    results = []
    for budget in args.budgets:
        for size in args.sizes:
            width, depth = (int(number) for number in size.split("x"))
            results.append(_run(args, width, depth, budget * TERA))
            _write(args.out, results, str(args.recipe), args.overrides)


def _run(args: argparse.Namespace, width: int, depth: int, budget: float) -> Result:
    """Train one size with one budget, or read the result of a run that did."""
    folder = args.out / f"{width}x{depth}-{budget / TERA:g}"
    file = folder / "scaling.json"
    if file.is_file():
        return Result(**json.loads(file.read_text(encoding="utf-8")))
    options = [
        *args.overrides,
        f"model.transformer={{width: {width}, depth: {depth}, heads: {max(1, width // 64)}}}",
        f"run.dir={folder}",
        f"optim.lr={args.lr * math.sqrt(256 / width):.3g}",
    ]
    recipe = resolve_recipe(args.recipe, options)
    if not isinstance(recipe, DALLERecipe):
        raise SystemExit(f"{args.recipe} is of stage {recipe.stage}; expected dalle")
    batch = recipe.run.batch_size
    steps = max(1, round(budget / (operations(ModelSize.of(recipe.model), checkpointing=False) * batch)))
    options += [
        f"run.steps={steps}",
        f"optim.warmup={min(100, max(1, steps // 10))}",
        *(f"run.{key}={steps}" for key in ("validate_every", "sample_every", "save_every")),
        "run.keep_best=null",
        "run.tracker=none",
        "resume=auto",
    ]
    print(f"== width {width}, depth {depth}, {budget / TERA:g} TFLOP: {steps} steps", flush=True)
    if train.main([str(args.recipe), *options]) != 0:
        raise SystemExit(f"{folder}: the run did not end")
    curves = read_metrics(folder / "metrics.jsonl").curves
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in DALLE(recipe.model).parameters())
    image_nats, text_nats = (curves[f"validation/{name}_nats"].values[-1] for name in ("image", "text"))
    result = Result(width, depth, parameters, budget, steps, steps * batch, image_nats, text_nats)
    file.write_text(json.dumps(asdict(result)), encoding="utf-8")
    return result


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
    main()
