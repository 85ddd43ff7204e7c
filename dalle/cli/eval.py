"""python -m dalle eval: figures of trained weights on a held-out split."""

from __future__ import annotations

import argparse
import json
from typing import Any

from dalle.config import apply_overrides, from_dict


def add(commands: Any) -> None:
    """Add the command to the subparsers of `dalle`."""
    command = commands.add_parser("eval", help="figures of a tokenizer, a CLIP or a DALL-E on a held-out split")
    command.add_argument("source", metavar="SOURCE", help="folder of weights (or a hub id), for example RUN/model")
    command.add_argument("data", nargs="*", metavar="key=value", help="options of the data set; kind=emoji if none")
    command.add_argument("--split", help="of the data set (default: test_pair of the emoji, else validation)")
    command.add_argument("--batch-size", type=int, default=64, help="images at a time (default: %(default)s)")
    command.add_argument(
        "--limit", type=int, help="look at so many images only, evenly spread over the split (default: all)"
    )
    command.add_argument("--device", default="auto", help="auto takes an accelerator if there is one (%(default)s)")
    command.add_argument("--json", action="store_true", help="print JSON, not a table")
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from dalle.data import EncodedConfig
    from dalle.device import pick_device
    from dalle.evaluation.evaluate import evaluate, table

    data = from_dict(EncodedConfig, apply_overrides({"kind": "emoji"}, args.data), "command line")
    split = args.split or ("test_pair" if data.kind == "emoji" else "validation")
    figures = evaluate(args.source, data, split, args.batch_size, args.limit, pick_device(args.device))
    if args.json:
        print(json.dumps({"source": args.source, "split": split} | figures, indent=2))
    else:
        print(f"{args.source}, {figures.pop('images')} images of {split}\n{table(figures)}")
