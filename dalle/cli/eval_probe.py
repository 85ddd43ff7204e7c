"""python -m dalle eval probe: accuracy of a linear probe on the features of a CLIP's image tower."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from dalle.cli.classify import add_embedding_options
from dalle.cli.eval_clip import add_source_options, print_metrics, sources_of


def add(commands: Any) -> None:
    """Add the command to the subparsers of `dalle`."""
    command = commands.add_parser("eval probe", help="linear probe: logistic regression on a CLIP's image features")
    add_source_options(command)
    add_embedding_options(command)
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from dalle.apps.clip_report import features_of, probe_metrics
    from dalle.checkpoints.load import load_clip
    from dalle.device import pick_device

    source, test = sources_of(args)
    data, on = source.labeled(), None if test is None else test.labeled()
    clip = load_clip(args.source, pick_device(args.device))
    with tqdm(unit="image", disable=None) as bar:
        train = features_of(clip, data, args.batch_size, args.workers, bar.update)
        tested = None if on is None else features_of(clip, on, args.batch_size, args.workers, bar.update)
    broken = train.broken + ([] if tested is None else tested.broken)
    for reason in broken:
        print(f"dalle eval probe: skipped {reason}", file=sys.stderr)
    found = probe_metrics(train, tested)
    if args.json:
        print(json.dumps({"source": args.source, "images": args.images, "probe": found, "skipped": broken}, indent=2))
        return
    print_metrics(args, {"probe": found})
