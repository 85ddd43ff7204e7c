"""Draws what sample_speed.py found: python benchmarks/plot.py FILE.json ... --out docs/sample_speed.png

Tokens a second against candidates at a time, for each kind of weights, with the limit of the machine. It needs
matplotlib (`pip install matplotlib`), which nothing else here does.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from dalle.cli.startup import explain_startup_errors

explain_startup_errors("plot.py")

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from dalle.cli.parser import CommandLine
from dalle.cli.tool import run_tool


def main() -> None:
    parser = CommandLine(description=__doc__.partition("\n")[0])
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    content = [json.loads(file.read_text()) for file in args.files]
    results: list[dict[str, Any]] = [result for one in content for result in one["results"]]
    kinds = list(dict.fromkeys(result["kind"] for result in results))
    figure, axes = pyplot.subplots(1, len(kinds), figsize=(4.2 * len(kinds), 4), sharey=True, squeeze=False)
    for axis, kind in zip(axes[0], kinds, strict=True):
        mine = sorted((result for result in results if result["kind"] == kind), key=lambda result: result["batch"])
        axis.plot([r["batch"] for r in mine], [r["limit"] for r in mine], "k--", label="limit of the machine")
        for name in dict.fromkeys(name for r in mine for name in r["tokens_per_second"]):
            points = [(r["batch"], r["tokens_per_second"][name]) for r in mine if name in r["tokens_per_second"]]
            axis.plot(*zip(*points, strict=True), "o-" if name == "dalle" else "s:", label=name)
        axis.set(title=kind, xlabel="candidates at a time", xscale="log", yscale="log")
        axis.set_xticks([r["batch"] for r in mine], [str(r["batch"]) for r in mine])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    axes[0][0].set_ylabel("image tokens a second")
    figure.suptitle(content[0]["about"]["machine"], fontsize=9)
    figure.tight_layout()
    figure.savefig(args.out, dpi=110)


if __name__ == "__main__":
    sys.exit(run_tool(main))
