"""The `dalle` command: python -m dalle COMMAND. The commands are in dalle/cli/; sample and train are the scripts."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence

from dalle import __version__
from dalle.cli import scripts
from dalle.cli.parser import CommandLine, print_error
from dalle.cli.streams import settle_streams
from dalle.cli.threads import wait_briefly

# Modules of dalle/cli, in the order of --help.
COMMANDS = (
    *("encode", "plan", "find_batch", "report", "eval", "eval_classify", "judge", "export", "convert", "inspect"),
    *("classify", "index", "search", "paint", "assemble", "vary", "blend", "edit"),
)
_PAIRS = ("overrides", "data", "given")  # what the commands call their key=value


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. What a user can cause is one line and exit code 2."""
    wait_briefly()
    settle_streams()
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in scripts.SCRIPTS:
        return scripts.run_script(words[0], words[1:])
    args = _parsed(words)
    command: Callable[[argparse.Namespace], None] = args.run
    try:
        command(args)
    except BrokenPipeError:  # `dalle ... | head` has what it wanted; nor is the rest to fail when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        from dalle.device import out_of_memory  # here, as torch takes a second to import

        short = out_of_memory(error)
        if short is not None:
            return print_error(f"dalle {args.command}", f"{short}: {_smaller(args)}")
        if isinstance(error, RuntimeError):
            raise
        return print_error(f"dalle {args.command}", error)
    except KeyboardInterrupt:
        print(f"dalle {args.command}: stopped", file=sys.stderr)
        return 130
    return 0


def _smaller(args: argparse.Namespace) -> str:
    """What to change where there is too little memory."""
    if hasattr(args, "cutout_batch"):
        return "give a smaller --size, fewer --cutouts or a smaller --cutout-batch"
    if hasattr(args, "batch_size"):
        return "give a smaller --batch-size (and fewer --workers, where there are some)"
    return "it takes a machine with more memory, or a higher limit (ulimit -v)"


def _parsed(words: list[str]) -> argparse.Namespace:
    """Arguments, in which key=value may stand anywhere; argparse takes positional ones only together."""
    if words[:2] == ["eval", "classify"]:  # a command of two words: a folder of that name is ./classify
        words[:2] = ["eval classify"]
    parser = _parser()
    args, rest = parser.parse_known_args(words)
    pairs: list[str] | None = next((getattr(args, name) for name in _PAIRS if hasattr(args, name)), None)
    if rest and (pairs is None or any(text.startswith("-") or "=" not in text for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if pairs is not None:
        pairs.extend(rest)
    return args


def _parser() -> CommandLine:
    parser = CommandLine("dalle", description="Text-to-image: sample, train, measure, share, search, paint.")
    parser.add_argument("--version", action="version", version=f"dalle {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    scripts.add(commands)
    for name in COMMANDS:
        importlib.import_module(f"dalle.cli.{name}").add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
