"""The `dalle` command: python -m dalle COMMAND. Each command imports what it needs when it runs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

DTYPES = ("float32", "bfloat16", "float16", "int8")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. What a user can cause is one line and exit code 2."""
    args = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], None] = args.run
    try:
        command(args)
    except (ValueError, OSError) as error:
        print(f"dalle {args.command}: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("dalle", description="Figures of trained weights, and folders to share them.")
    commands = parser.add_subparsers(dest="command", required=True)

    command = commands.add_parser("eval", help="figures of a tokenizer, a CLIP or a DALL-E on a held-out split")
    command.add_argument("source", help="folder of weights")
    command.add_argument("data", nargs="*", metavar="key=value", help="options of the data set; kind=emoji if none")
    command.add_argument("--split", default="test_pair", help="split of the data set (default: %(default)s)")
    command.add_argument("--batch-size", type=int, default=64, help="images at a time (default: %(default)s)")
    command.add_argument("--limit", type=int, help="look at so many images only")
    command.set_defaults(run=_eval)

    command = commands.add_parser("export", help="write the weights of a run as a folder to share")
    command.add_argument("run_folder", type=Path, metavar="RUN", help="folder of a run (run.dir of its config)")
    command.add_argument("out", type=Path, metavar="OUT", help="folder to write; its README.md and recipe are kept")
    command.add_argument("--dtype", choices=DTYPES, default="float32", help="how weights are stored (%(default)s)")
    command.set_defaults(run=_export)
    return parser


def _eval(args: argparse.Namespace) -> None:

    from dalle.config import apply_overrides, from_dict
    from dalle.data import DataConfig
    from dalle.evaluate import evaluate

    data = from_dict(DataConfig, apply_overrides({"kind": "emoji"}, args.data), "command line")
    figures = evaluate(args.source, data, args.split, args.batch_size, args.limit)
    print(json.dumps({"split": args.split} | figures, indent=2))


def _export(args: argparse.Namespace) -> None:
    from dalle import artifact

    artifact.export(args.run_folder / "model", args.out, args.dtype)
    print(args.out)


if __name__ == "__main__":
    sys.exit(main())
