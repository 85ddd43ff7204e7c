"""python -m dalle serve: serve a page to generate images with, and an API that OpenAI's clients can use."""

from __future__ import annotations

import argparse
import importlib.util
import logging
from dataclasses import fields
from typing import Any

from dalle.apps.server.settings import ServeConfig
from dalle.cli.parser import add_options
from dalle.config import apply_overrides, from_dict
from dalle.files import install_command

_GIVEN = ("family", "heads", "convention", "grid", "roles")


def add(commands: Any) -> None:
    """Add the command to the subparsers of `dalle`."""
    command = commands.add_parser("serve", help="serve a page to generate images with, and an API for OpenAI's clients")
    add_options(command, ServeConfig)
    command.add_argument(
        "--given",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"facts that published files do not contain: {', '.join(_GIVEN)} (docs/checkpoints.md)",
    )
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    names = {field.name for field in fields(ServeConfig)}
    values = {name: value for name, value in vars(args).items() if name in names}
    settings: ServeConfig = from_dict(ServeConfig, values, "command line")
    given = apply_overrides({}, args.given)
    unknown = [name for name in given if name not in _GIVEN]
    if unknown:
        raise ValueError(f"--given {unknown[0]}: nothing of that name can be given; known here: {', '.join(_GIVEN)}")
    missing = [name for name in ("fastapi", "uvicorn", "multipart") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"{missing[0]} is not installed: {install_command('serve')}")
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("dalle.server").setLevel(logging.INFO)
    from dalle.apps.server.run import serve

    serve(settings, given)
