"""python -m dalle report: write curves and sample images of a run to one HTML file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Add the command to the subparsers of `dalle`."""
    command = commands.add_parser("report", help="write curves and images of a run to one HTML file")
    command.add_argument("folder", type=Path, metavar="RUN", help="run folder (run.dir of its config)")
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from dalle.training.report.html import write_report

    print(write_report(args.folder))
