"""Arguments of `train.py`: a recipe and its overrides."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dalle.cli.parser import CommandLine

_DESCRIPTION = "Train any stage from one YAML: python train.py configs/emoji/dalle.yaml optim.lr=1e-4 run.dir=runs/mine"


def command_line(program: str = "train.py") -> CommandLine:
    """Build the parser, which lists none of a recipe's own options."""
    parser = CommandLine(program, description=_DESCRIPTION, add_help=False)
    parser.add_argument("config", nargs="?", type=Path, help="a YAML, or the name of one that ships: emoji/dalle")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="options of the config to override")
    parser.add_argument("--print-config", action="store_true", help="print the resolved config and exit")
    parser.add_argument("--traceback", action="store_true", help="show the traceback of an error")
    parser.add_argument("-h", "--help", action="store_true", help="show this, and with a config all of its options")
    return parser


def parse(argv: Sequence[str] | None, program: str) -> argparse.Namespace:
    """Parse the command line; --help prints every option of the recipe, or lists those that ship, and exits."""
    from dalle.training.recipe import describe_recipes

    parser = command_line(program)
    parser.other = "; an option of the recipe is given as key.path=value, for example run.steps=100"
    args = parser.parse_intermixed_args(argv)  # flags may come between overrides
    if args.help:
        print(f"{parser.format_help()}\n{describe_recipes(args.config)}")
        raise SystemExit(0)
    if args.config is None:
        parser.error("which config? for example emoji/dalle, or the path of a YAML")
    return args
