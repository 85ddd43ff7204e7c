"""python -m dalle inspect: describe published weights without loading them."""

from __future__ import annotations

import argparse
from typing import Any

from dalle.config import apply_overrides


def add(commands: Any) -> None:
    """Add the command to the subparsers of `dalle`."""
    command = commands.add_parser("inspect", help="describe published weights without loading them")
    command.add_argument("source", metavar="SOURCE", help="published file or folder, or a hub id")
    command.add_argument(
        "given",
        nargs="*",
        metavar="key=value",
        help="facts that the files do not contain, for example heads=16 (docs/checkpoints.md)",
    )
    command.add_argument("--prior", metavar="SOURCE", help="prior of Kandinsky 2.2, which is published apart")
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from dalle.checkpoints.published.summary import inspect

    print(inspect(args.source, apply_overrides({}, args.given), args.prior))
