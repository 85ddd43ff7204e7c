"""The `dalle` command: python -m dalle COMMAND. The commands are in dalle/cli/; sample and train are the scripts."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext

from dalle.cli.startup import explain_startup_errors

explain_startup_errors("dalle")  # before anything else is imported

# isort: split
from dalle import __version__
from dalle.cli import scripts
from dalle.cli.errors import report_error
from dalle.cli.interrupt import exit_code, quiet_exit, sigterm_raises
from dalle.cli.parser import CommandLine
from dalle.cli.streams import settle_streams
from dalle.cli.threads import limit_openmp_spinning

# Modules of dalle/cli and the scripts, in the order of --help
GROUPS = {
    "Generate": ("sample", "vary", "blend", "edit", "paint", "serve"),
    "Train": ("train", "encode", "plan", "find_batch", "report"),
    "Evaluate": ("eval", "eval_classify", "eval_clip", "eval_probe", "eval_unclip", "judge"),
    "Models": ("export", "assemble", "convert", "inspect"),
    "Search": ("index", "search", "classify"),
}
COMMANDS = tuple(name for names in GROUPS.values() for name in names if name not in scripts.SCRIPTS)
_EVALS = ("classify", "clip", "probe", "unclip")  # commands of two words; a folder of that name must be written ./clip
_KEY_VALUE_ARGUMENTS = ("overrides", "data", "given")  # names of key=value arguments of the commands


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. A user error is printed as one line, exit code 2; Ctrl-C gives 130, SIGTERM 143."""
    with quiet_exit(argv):
        return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
    limit_openmp_spinning()
    settle_streams()
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in scripts.SCRIPTS:
        return scripts.run_script(words[0], words[1:])
    args = _parse(words)
    command: Callable[[argparse.Namespace], None] = args.run
    try:
        # A process of torchrun may wait in a collective, where Python's handlers do not run
        with sigterm_raises() if os.environ.get("WORLD_SIZE", "1") == "1" else nullcontext():
            command(args)
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        return report_error(f"dalle {args.command}", error, lambda: _out_of_memory_hint(args), _kept(args))
    except KeyboardInterrupt as stop:
        print(f"dalle {args.command}: stopped{_kept(args)}", file=sys.stderr)
        return exit_code(stop)
    return 0


def _kept(args: argparse.Namespace) -> str:
    """What a command that is broken off leaves behind, for the end of its line; "" if it has said nothing."""
    kept = getattr(args, "kept", None)
    return "" if kept is None else f"; {kept}"


def _out_of_memory_hint(args: argparse.Namespace) -> str:
    """Advice for a command that has run out of memory, by the options that it has."""
    if args.command == "paint":  # whose options are in `args` only if they are given
        return "give a smaller --size, fewer --cutouts or a smaller --cutout-batch"
    if hasattr(args, "batch_size"):
        return "give a smaller --batch-size (and fewer --workers, if any)"
    return "it needs a machine with more memory, or a higher limit (ulimit -v)"


def _parse(words: list[str]) -> argparse.Namespace:
    """Parse arguments, allowing key=value anywhere; argparse only accepts consecutive positional arguments."""
    if words[:1] == ["eval"] and words[1:2] and words[1] in _EVALS:
        words[:2] = [f"eval {words[1]}"]
    parser = _parser()
    args, rest = parser.parse_known_args(words)
    pairs: list[str] | None = next((getattr(args, name) for name in _KEY_VALUE_ARGUMENTS if hasattr(args, name)), None)
    if rest and (pairs is None or any(text.startswith("-") or "=" not in text for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if pairs is not None:
        pairs.extend(rest)
    return args


class _GroupedCommands(argparse.HelpFormatter):
    """Help with a heading before the first command of each group."""

    def _format_action(self, action: argparse.Action) -> str:
        heading = next((title for title, names in GROUPS.items() if names[0] == action.dest), None)
        text = super()._format_action(action)
        return text if heading is None else f"\n{' ' * (self._current_indent - 2)}{heading}:\n{text}"


def _parser() -> CommandLine:
    parser = CommandLine(
        "dalle",
        description="Text-to-image: sample, train, measure, share, search, paint.",
        formatter_class=_GroupedCommands,
    )
    parser.add_argument("--version", action="version", version=f"dalle {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, title="commands", metavar="COMMAND")
    for name in (name for names in GROUPS.values() for name in names):
        if name in scripts.SCRIPTS:
            scripts.add(commands, name)
            continue
        module = importlib.import_module(f"dalle.cli.{name}")
        module.add(commands)
        purpose = (module.__doc__ or "").partition("\n")[0].partition(": ")[2]  # python -m dalle NAME: PURPOSE
        list(commands.choices.values())[-1].description = purpose[:1].upper() + purpose[1:]
    return parser


if __name__ == "__main__":
    sys.exit(main())
