"""python -m dalle index: build or update a searchable index of images."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from dalle.cli.classify import add_clip_options

_SHOWN = 20  # maximum number of broken images to list; --json lists all


def add(commands: Any) -> None:
    """Add the command to the subparsers of `dalle`."""
    command = commands.add_parser("index", help="build or update a searchable index of images")
    command.add_argument(
        "images",
        nargs="*",
        metavar="IMAGES",
        help="folders (recursively), image, .parquet or .tar files, glob patterns, hub ids; anything else is removed "
        "from the index (default: those of the last update)",
    )
    command.add_argument("--out", type=Path, required=True, metavar="INDEX", help="folder of the index")
    command.add_argument("--split", default="train", help="split of a data set on the hub (%(default)s)")
    command.add_argument("--image", metavar="COLUMN", help="column with images (default: found by name)")
    command.add_argument(
        "--caption", metavar="COLUMN", help="column with captions (default: found by name, if there is one)"
    )
    command.add_argument(
        "--export",
        type=Path,
        metavar="FILE",
        help="export the embeddings as parquet for a vector database; without IMAGES the index is not updated",
    )
    add_clip_options(command)
    command.set_defaults(run=_run, kept="images embedded so far are kept: the same command goes on")


def _run(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from dalle.apps.search import ImageIndex
    from dalle.apps.search.export import export
    from dalle.apps.search.store import Source
    from dalle.files import check_file, check_folder, printable

    if args.export is not None:
        check_file(args.export, "--export", args.images)
    result: dict[str, Any] = {"index": str(args.out)}
    if args.images or args.export is None:
        check_folder(args.out)
        sources = [Source(path, args.split, args.image, args.caption) for path in args.images]
        with tqdm(unit="image", disable=None) as bar:

            def on_progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            index, report = ImageIndex.build(
                args.out,
                *sources,
                clip=args.clip,
                batch_size=args.batch_size,
                workers=args.workers,
                progress=on_progress,
                device=args.device,
            )
        result |= vars(report)
        for reason in report.broken[:_SHOWN]:
            print(f"dalle index: skipped {printable(reason)}", file=sys.stderr)
        if len(report.broken) > _SHOWN:
            print(f"dalle index: and {len(report.broken) - _SHOWN} more; --json names them", file=sys.stderr)
    else:
        index = ImageIndex(args.out)
    if args.export is not None:
        if args.export.exists():  # perhaps as one of the images of a folder, or a pattern
            files = {str(file) for batch in index.table.batches for file in batch.column("file").to_pylist()}
            check_file(args.export, "--export", files)
        result |= {"exported": export(index.table, args.export, index.manifest.dimensions), "file": str(args.export)}
    print(json.dumps(result, indent=2, ensure_ascii=False) if args.json else _table(result))


def _table(result: dict[str, Any]) -> str:
    lines = []
    if "images" in result:
        counts = ("embedded", "unchanged", "dropped")
        parts = [
            f"{result['images']} image{'s' * (result['images'] != 1)}",
            *(f"{result[name]} {name}" for name in counts),
        ]
        lines.append(f"{result['index']}: {', '.join(parts)}, {len(result['broken'])} broken")
    if "exported" in result:
        lines.append(f"{result['file']}: {result['exported']} vector{'s' * (result['exported'] != 1)}")
    return "\n".join(lines)
