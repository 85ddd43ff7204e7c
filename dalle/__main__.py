"""The `dalle` command: python -m dalle COMMAND. Each command imports what it needs when it runs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from dalle.config import CommandLine, apply_overrides, from_dict, refuse

DTYPES = ("float32", "bfloat16", "float16", "int8")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. What a user can cause is one line and exit code 2."""
    args = _parser().parse_args(argv)
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

    command = commands.add_parser("eval", help="figures of a tokenizer, a CLIP or a DALL-E on a held-out split")
    command.add_argument("source", metavar="SOURCE", help="folder of weights (or a hub id), for example RUN/model")
    command.add_argument("data", nargs="*", metavar="key=value", help="options of the data set; kind=emoji if none")
    command.add_argument("--split", help="of the data set (default: test_pair of the emoji, else validation)")
    command.add_argument("--batch-size", type=int, default=64, help="images at a time (default: %(default)s)")
    command.add_argument("--limit", type=int, help="look at the first so many images only (default: all)")
    command.add_argument("--device", default="auto", help="auto takes an accelerator if there is one (%(default)s)")
    command.add_argument("--json", action="store_true", help="print JSON, not a table")
    command.set_defaults(run=_eval)

    command = commands.add_parser("export", help="write the weights of a run as a folder to share")
    command.add_argument("run_folder", type=Path, metavar="RUN", help="folder of a run (run.dir of its config)")
    command.add_argument("out", type=Path, metavar="OUT", help="folder to write; its README.md and recipe are kept")
    command.add_argument("--dtype", choices=DTYPES, default="float32", help="how weights are stored (%(default)s)")
    command.set_defaults(run=_export)

    given = "what the files do not tell, for example heads=16 (docs/checkpoints.md)"
    command = commands.add_parser("convert", help="write published weights of any kind as a folder of ours")
    command.add_argument("source", metavar="SOURCE", help="file or folder as it was published, or a hub id")
    command.add_argument("out", type=Path, metavar="OUT", help="folder to write, which must not be there")
    command.add_argument("given", nargs="*", metavar="key=value", help=given)
    command.add_argument("--dtype", choices=DTYPES, default="float32", help="how weights are stored (%(default)s)")
    command.add_argument("--image-tokenizer", metavar="SOURCE", help="of a model whose files do not hold it")
    command.add_argument("--text-tokenizer", metavar="SOURCE", help="of a model or CLIP whose files do not hold it")
    command.set_defaults(run=_convert)

    command = commands.add_parser("inspect", help="what published weights are, without loading them")
    command.add_argument("source", metavar="SOURCE", help="file or folder as it was published, or a hub id")
    command.add_argument("given", nargs="*", metavar="key=value", help=given)
    command.set_defaults(run=_inspect)
    return parser


def _eval(args: argparse.Namespace) -> None:
    from dalle.data import DataConfig
    from dalle.evaluate import evaluate, table
    from dalle.pipeline import pick_device

    data = from_dict(DataConfig, apply_overrides({"kind": "emoji"}, args.data), "command line")
    split = args.split or ("test_pair" if data.kind == "emoji" else "validation")
    figures = evaluate(args.source, data, split, args.batch_size, args.limit, pick_device(args.device))
    if args.json:
        print(json.dumps({"source": args.source, "split": split} | figures, indent=2))
    else:
        print(f"{args.source}, {figures.pop('images')} images of {split}\n{table(figures)}")


def _export(args: argparse.Namespace) -> None:
    from dalle import artifact

    artifact.export(args.run_folder / "model", args.out, args.dtype)
    size = sum(file.stat().st_size for file in args.out.rglob("*") if file.is_file())
    print(f"{args.out}: {size / 1e6:.1f} MB")


def _convert(args: argparse.Namespace) -> None:
    from dalle.published.convert import convert

    found = convert(
        args.source,
        args.out,
        args.dtype,
        image_tokenizer=args.image_tokenizer,
        text_tokenizer=args.text_tokenizer,
        given=apply_overrides({}, args.given),
    )
    print(f"{args.out}: {found.family}; its licence: {found.licence}")


def _inspect(args: argparse.Namespace) -> None:
    from dalle.published.summary import inspect

    print(inspect(args.source, apply_overrides({}, args.given)))


if __name__ == "__main__":
    sys.exit(main())
