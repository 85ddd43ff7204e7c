"""python -m dalle export: the weights of a run as a folder to share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

DTYPES = ("float32", "bfloat16", "float16", "int8")


def add(commands: Any) -> None:
    """Add the command to the subparsers of `dalle`."""
    command = commands.add_parser("export", help="write the weights of a run as a folder to share")
    command.add_argument("run_folder", type=Path, metavar="RUN", help="folder of a run (run.dir of its config)")
    command.add_argument("out", type=Path, metavar="OUT", help="folder to write; its README.md and recipe are kept")
    command.add_argument("--dtype", choices=DTYPES, default="float32", help="how weights are stored (%(default)s)")
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from dalle import artifact

    artifact.export(args.run_folder / "model", args.out, args.dtype)
    size = sum(file.stat().st_size for file in args.out.rglob("*") if file.is_file())
    print(f"{args.out}: {size / 1e6:.1f} MB")
