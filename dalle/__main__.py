"""The `dalle` command: python -m dalle COMMAND. The commands are in dalle/commands/."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence

from dalle.config import CommandLine, refuse

COMMANDS = ("eval", "eval_classify", "classify", "index", "search", "export", "convert", "inspect")
"""Modules of dalle/commands, in the order of --help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. What a user can cause is one line and exit code 2."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:2] == ["eval", "classify"]:  # a command of two words: a folder of that name is ./classify
        words[:2] = ["eval classify"]
    args = _parser().parse_args(words)
    command: Callable[[argparse.Namespace], None] = args.run
    try:
        command(args)
    except (ValueError, OSError) as error:
        return refuse(f"dalle {args.command}", error)
    except KeyboardInterrupt:
        print(f"dalle {args.command}: stopped", file=sys.stderr)
        return 130
    return 0


def _parser() -> CommandLine:
    parser = CommandLine("dalle", description="Figures of trained weights, and folders to share them.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in COMMANDS:
        importlib.import_module(f"dalle.commands.{name}").add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
