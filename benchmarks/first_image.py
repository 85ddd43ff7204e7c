"""From the command to the first PNG, and where the time goes: python benchmarks/first_image.py [--n 1 16]

Runs sample.py as a user does, in a process of its own, and times its parts: starting Python and importing, loading,
drawing codes, turning codes into pixels with CLIP's scores, writing files. The median of some runs; --help apart.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from dalle.cli.startup import explain_startup_errors

explain_startup_errors("first_image.py")

from machine import median

from dalle.cli.parser import CommandLine
from dalle.cli.tool import run_tool

ROOT = Path(__file__).resolve().parents[1]
PROBE = """
import json, sys, time
start = time.perf_counter()
marks = {}
def timed(owner, name, label):
    plain = getattr(owner, name)
    def wrapper(*args, **kwargs):
        begin = time.perf_counter()
        try:
            return plain(*args, **kwargs)
        finally:
            marks[label] = marks.get(label, 0) + time.perf_counter() - begin
    setattr(owner, name, wrapper)
import sample, dalle.pipelines.text_to_image, dalle.images
marks["import"] = time.perf_counter() - start
timed(dalle.pipelines.text_to_image, "load_components", "load")
timed(dalle.pipelines.text_to_image, "generate", "draw codes")
timed(dalle.pipelines.text_to_image, "finished", "pixels and CLIP")
timed(dalle.images.grid, "write_png", "write files")
sample.main(sys.argv[1:])
marks["all"] = time.perf_counter() - start
print(json.dumps(marks))
"""


def run(n: int, model: str | None, dtype: str) -> dict[str, float]:
    """Seconds of one run by what they were for."""
    with tempfile.TemporaryDirectory() as out:
        options = ["--n", str(n), "--keep", str(min(n, 4)), "--seed", "7", "--out", out, "--dtype", dtype]
        options += [] if model is None else ["--model", model]
        command = [sys.executable, "-c", PROBE, "a red heart, 3d style", *options]
        start = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        whole = time.perf_counter() - start
    marks: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    marks["after import"] = marks.pop("all") - marks["import"]
    return {"start Python": whole - marks["import"] - marks["after import"], **marks}


def main() -> None:
    parser = CommandLine(description=__doc__.partition("\n")[0])
    parser.add_argument("--n", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", metavar="FOLDER")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    start = time.perf_counter()
    subprocess.run([sys.executable, "sample.py", "--help"], cwd=ROOT, capture_output=True, check=True)
    print(f"sample.py --help: {time.perf_counter() - start:.2f} s")
    results: list[dict[str, Any]] = []
    for n in args.n:
        for dtype in args.dtypes:
            runs = [run(n, args.model, dtype) for _ in range(args.rounds)]
            parts = {name: median([one[name] for one in runs]) for name in runs[0]}
            results.append({"n": n, "dtype": dtype, **parts})
            print(f"{n:>3} candidates, {dtype}: " + ", ".join(f"{name} {value:.2f} s" for name, value in parts.items()))
    if args.json is not None:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(run_tool(main))
