r"""Which options of a recipe help: each variant against the recipe as it is, in runs of the same length and seed.

    python benchmarks/ablation.py configs/emoji/dalle.yaml run.steps=800 \
        --variant "no dropout" model.transformer.dropout=0 --variant "no BPE dropout" bpe_dropout=0

Runs that are finished are not run again, so that it can be interrupted. The table has the last validation of each run
and its last training losses; the difference of the two is what a model has learned by heart.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import train
from dalle.training.metrics_log import read_metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
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
    parser.add_argument("--metrics", nargs="+", help="columns (default: every metric of the validation)")
    args = parser.parse_args()
    rows = {}
    for name, *options in [["as it is"], *args.variant]:
        rows[name] = _run(args, name, options)
        _write(args.out / "results.md", rows, args.metrics)


def _run(args: argparse.Namespace, name: str, options: list[str]) -> dict[str, float]:
    """Train one variant, or go on with it; returns its last metrics."""
    folder = args.out / re.sub(r"\W+", "-", name)
    print(f"== {name}: {' '.join(options)}", flush=True)
    more = [f"run.dir={folder}", "run.tracker=none", "run.keep_best=null", "resume=auto"]
    if train.main([str(args.recipe), *args.overrides, *options, *more]) != 0:
        raise SystemExit(f"{folder}: the run did not end")
    return {name: curve.values[-1] for name, curve in read_metrics(folder / "metrics.jsonl").curves.items()}


def _write(file: Path, rows: dict[str, dict[str, float]], metrics: list[str] | None) -> None:
    names = metrics or [key for key in next(iter(rows.values())) if key.startswith("validation/")]
    lines = [
        "| | " + " | ".join(name.removeprefix("validation/") for name in names) + " |",
        "|---" * (1 + len(names)) + "|",
    ]
    lines += [f"| {row} | " + " | ".join(f"{found[name]:.4g}" for name in names) + " |" for row, found in rows.items()]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines), flush=True)


if __name__ == "__main__":
    main()
