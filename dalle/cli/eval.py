"""python -m dalle eval: measures of trained weights on the splits of a data set."""

from __future__ import annotations

import argparse
import json
from typing import Any

from dalle.config import apply_overrides, from_dict


def add(commands: Any) -> None:
    """Add the command to the subparsers of `dalle`."""
    command = commands.add_parser("eval", help="measures of a tokenizer, a CLIP or a DALL-E on splits of a data set")
    command.add_argument("source", metavar="SOURCE", help="weights: a folder, a published file, or a hub id")
    command.add_argument(
        "data", nargs="*", metavar="key=value", help="options of the data set (default: the embedded drawings)"
    )
    command.add_argument("--split", action="append", help="of the data set; may be given again (default: all)")
    command.add_argument("--batch-size", type=int, default=64, help="images at a time (default: %(default)s)")
    command.add_argument(
        "--limit", type=int, help="at most so many images of a split, evenly spread over it (default: 1000 of train)"
    )
    command.add_argument("--device", default="auto", help="auto takes an accelerator if there is one (%(default)s)")
    command.add_argument("--json", action="store_true", help="print JSON, not a table")
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from dalle.data import EncodedConfig
    from dalle.device import pick_device
    from dalle.evaluation.run import evaluate
    from dalle.evaluation.table import table

    data = from_dict(EncodedConfig, apply_overrides({"kind": "drawings"}, args.data), "command line")
    device = pick_device(args.device)
    with tqdm(unit="image", disable=None) as bar:
        found = evaluate(args.source, data, args.split, args.batch_size, args.limit, device, bar.update)
    if args.json:
        print(json.dumps({"source": args.source, "data": data.kind, "splits": found}, indent=2))
    else:
        print(f"{args.source}\n{table(found)}")
