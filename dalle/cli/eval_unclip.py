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
        "--limit",
        type=int,
        help="maximum pairs of each table, at least 1, of prior and blend 2; two make one blend (default: all, or as "
        "docs/unclip.md says)",
    )
    command.add_argument(
        "--clip", help="independent CLIP that judges images: decoder, blend, inpainting, systems (the model's own)"
    )
    command.add_argument(
        "--judge",
        metavar="FOLDER",
        help="folder of a judge trained by `dalle judge`: decoder, edit, inpainting, systems",
    )
    command.add_argument("--against", metavar="MODEL", help="autoregressive model to compare with: inpainting, systems")
    command.add_argument(
        "--language", action="append", help="language of the prompts of the table systems; may be repeated (en, ne)"
    )
    command.add_argument("--from-style", help="style of the images of the table edit (fluent-3d)")
    command.add_argument("--to-style", help="style that they are edited to (noto)")
    command.add_argument(
        "--steps",
        type=int,
        help="steps of inversion and sampling of the tables blend and edit (50); the table inversion has its own",
    )
    command.add_argument(
        "--out",
        type=Path,
        help="folder for sheets of the images: decoder, blend, edit, inpainting, systems (default: none are written)",
    )
    command.add_argument("--device", default="auto", help="auto takes an accelerator if there is one (%(default)s)")
    command.add_argument("--json", action="store_true", help="print JSON instead of tables")
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from dalle.apps.unclip_report.report import ReportOptions, report, tables_of
    from dalle.data import AnyDataConfig
    from dalle.device import pick_device
    from dalle.evaluation.table import markdown_table
    from dalle.files import check_folder

    data = from_dict(AnyDataConfig, apply_overrides({"kind": "drawings"}, args.data), "command line")
    options = ReportOptions(
        data=data,
        split=args.split,
        limit=args.limit,
        clip=args.clip,
        judge=args.judge,
        against=args.against,
        language=None if args.language is None else tuple(args.language),
        from_style=args.from_style,
        to_style=args.to_style,
        steps=args.steps,
        out=args.out,
    )
    tables = tables_of(args.source, args.table, options)
    if args.out is not None:
        check_folder(args.out)
        args.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    with tqdm(disable=None) as bar:
        for name, rows in report(args.source, tables, options, pick_device(args.device), bar.update):
            found[name] = rows
            if not args.json:
                bar.clear()
                print(f"{args.source}, {args.split}: {name}\n\n{markdown_table(rows)}\n", flush=True)
    if args.json:
        print(json.dumps({"source": args.source, "split": args.split, "tables": found}, indent=2))
