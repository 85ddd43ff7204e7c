"""python -m dalle eval unclip: the tables of an unCLIP, or of its prior alone, beside their baselines."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from dalle.config import apply_overrides, from_dict

_TABLES = (
    "prior, decoder, inversion, blend, edit (needs --judge), inpainting, systems (needs --against), speed; a prior "
    "alone has its own only"
)


def add(commands: Any) -> None:
    """Add the command to the subparsers of `dalle`."""
    command = commands.add_parser(
        "eval unclip", help="tables of an unCLIP: prior, decoder, inversion, blends, edits, inpainting, speed"
    )
    command.add_argument("source", metavar="FOLDER", help="unCLIP written by `dalle assemble`, or a trained prior")
    command.add_argument(
        "data", nargs="*", metavar="key=value", help="options of the data set (default: the embedded drawings)"
    )
    command.add_argument(
        "--table", action="append", default=[], metavar="NAME", help=f"may be repeated (default: all): {_TABLES}"
    )
    command.add_argument("--split", default="test_pair", help="split of the held-out pairs (%(default)s)")
    command.add_argument(
        "--limit", type=int, help="maximum pairs of each table (default: all, or as docs/unclip.md says)"
    )
    command.add_argument("--clip", help="independent CLIP that judges images (default: the model's own)")
    command.add_argument("--judge", metavar="FOLDER", help="folder of a judge trained by `dalle judge`")
    command.add_argument("--against", metavar="MODEL", help="autoregressive model to compare with")
    command.add_argument(
        "--language", action="append", help="language of the prompts of the table systems; may be repeated (en, ne)"
    )
    command.add_argument("--from-style", default="fluent-3d", help="style of the images that are edited (%(default)s)")
    command.add_argument("--to-style", default="noto", help="style that they are edited to (%(default)s)")
    command.add_argument("--steps", type=int, default=50, help="steps of inversion and sampling (%(default)s)")
    command.add_argument("--out", type=Path, help="folder for sheets of the images (default: none are written)")
    command.add_argument("--device", default="auto", help="auto takes an accelerator if there is one (%(default)s)")
    command.add_argument("--json", action="store_true", help="print JSON instead of tables")
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from dalle.apps.unclip_report.report import ReportOptions, report
    from dalle.data import AnyDataConfig
    from dalle.device import pick_device
    from dalle.evaluation.table import markdown_table
    from dalle.files import check_folder

    data = from_dict(AnyDataConfig, apply_overrides({"kind": "drawings"}, args.data), "command line")
    if args.out is not None:
        check_folder(args.out)
        args.out.mkdir(parents=True, exist_ok=True)
    options = ReportOptions(
        data=data,
        split=args.split,
        limit=args.limit,
        clip=args.clip,
        judge=args.judge,
        against=args.against,
        languages=tuple(args.language or ("en", "ne")),
        styles=(args.from_style, args.to_style),
        steps=args.steps,
        out=args.out,
    )
    found: dict[str, Any] = {}
    with tqdm(disable=None) as bar:
        for name, rows in report(args.source, args.table, options, pick_device(args.device), bar.update):
            found[name] = rows
            if not args.json:
                bar.clear()
                print(f"{args.source}, {args.split}: {name}\n\n{markdown_table(rows)}\n", flush=True)
    if args.json:
        print(json.dumps({"source": args.source, "split": args.split, "tables": found}, indent=2))
