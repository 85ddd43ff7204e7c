"""python -m dalle eval clip: retrieval, zero-shot classification and a linear probe of a CLIP, in one table."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from dalle.cli.classify import add_embedding_options, add_template_options, templates_given

if TYPE_CHECKING:
    from dalle.apps.clip_report import Source


def add(commands: Any) -> None:
    """Add the command to the subparsers of `dalle`."""
    command = commands.add_parser("eval clip", help="retrieval, zero-shot accuracy and linear probe of a CLIP")
    add_source_options(command)
    command.add_argument("--caption", metavar="COLUMN", help="column with captions (default: found by name)")
    add_template_options(command)
    add_embedding_options(command)
    command.set_defaults(run=_run)


def add_source_options(command: argparse.ArgumentParser) -> None:
    """Add the CLIP, the images, and the images that a probe is tested on."""
    command.add_argument("source", metavar="SOURCE", help="CLIP: a folder, a published file, or a hub id")
    command.add_argument(
        "images", metavar="IMAGES", help="folder, Parquet files, a data set on the hub, or emoji; with classes"
    )
    command.add_argument(
        "--by", metavar="COLUMN", help="column with the class (label); for emoji: style or group (style)"
    )
    command.add_argument("--image", metavar="COLUMN", help="column with images (default: found by name)")
    command.add_argument("--split", help="split of the data set (default: test_pair for emoji, else train)")
    command.add_argument(
        "--test", metavar="IMAGES", help="images to test the probe on (default: a fifth of each class is held out)"
    )
    command.add_argument("--test-split", metavar="SPLIT", help="split of the data set to test the probe on")


def sources_of(args: argparse.Namespace) -> tuple[Source, Source | None]:
    """The images, and those to test a probe on if any are given."""
    from dalle.apps.clip_report import Source

    options = {"by": args.by, "image": args.image, "caption": getattr(args, "caption", None)}
    source = Source(args.images, split=args.split, **options)
    if args.test is None and args.test_split is None:
        return source, None
    return source, Source(args.test or args.images, split=args.test_split, **options)


def _run(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from dalle.apps.clip_report import clip_report
    from dalle.checkpoints.load import load_clip
    from dalle.device import pick_device

    source, test = sources_of(args)
    clip = load_clip(args.source, pick_device(args.device))
    with tqdm(unit="image", disable=None) as bar:
        found = clip_report(clip, source, test, templates_given(args), args.batch_size, args.workers, bar.update)
    for reason in found.broken:
        # On stderr, so that stdout is the table or the JSON and nothing else
        print(f"dalle eval clip: skipped {reason}", file=sys.stderr)
    if args.json:
        shown = {"source": args.source, "images": args.images} | found.metrics
        print(json.dumps(shown | {"left_out": found.left_out, "skipped": found.broken}, indent=2, ensure_ascii=False))
        return
    for reason in dict.fromkeys(found.left_out.values()):
        parts = " and no ".join(part.replace("_", "-") for part, why in found.left_out.items() if why == reason)
        print(f"dalle eval clip: no {parts}: {reason}", file=sys.stderr)
    print_metrics(args, found.metrics)


def print_metrics(args: argparse.Namespace, parts: dict[str, dict[str, float]]) -> None:
    """Print one table: a line for each metric of each part."""
    print(f"{args.source} on {args.images}")
    for part, metrics in parts.items():
        for name, value in metrics.items():
            shown = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
            print(f"  {part:<10} {name:<18} {shown:>10}")
