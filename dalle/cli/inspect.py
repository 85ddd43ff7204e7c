"""python -m dalle inspect: what published weights are, without loading them."""

from __future__ import annotations

import argparse
from typing import Any

from dalle.cli.convert import GIVEN
from dalle.config import apply_overrides


def add(commands: Any) -> None:
    """Add the command to the subparsers of `dalle`."""
    command = commands.add_parser("inspect", help="what published weights are, without loading them")
    command.add_argument("source", metavar="SOURCE", help="file or folder as it was published, or a hub id")
    command.add_argument("given", nargs="*", metavar="key=value", help=GIVEN)
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from dalle.checkpoints.published.summary import inspect

    print(inspect(args.source, apply_overrides({}, args.given)))
