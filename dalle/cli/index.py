"""python -m dalle index: build or update a searchable index of images."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dalle.cli.classify import add_clip_options
from dalle.cli.streams import utf8_argument

if TYPE_CHECKING:
    from dalle.apps.search.store import Table

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
    command.add_argument("--split", help="split of a data set on the hub (train)")
    command.add_argument(
        "--image", type=utf8_argument, metavar="COLUMN", help="column with images (default: found by name)"
    )
    command.add_argument(
        "--caption",
        type=utf8_argument,
        metavar="COLUMN",
        help="column with captions (default: found by name, if there is one)",
    )
    command.add_argument(
        "--export",
        type=Path,
        metavar="FILE",
        help="export the embeddings as parquet for a vector database; without IMAGES the index is not updated",
    )
    add_clip_options(command)
    command.set_defaults(
        run=_run, usual=command.get_default, kept="images embedded so far are kept: the same command goes on"
    )


def _run(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from dalle.apps.search import ImageIndex
    from dalle.apps.search.export import export
    from dalle.apps.search.store import Source
    from dalle.files import check_file, check_folder, printable

    if not args.images:
        _check_unused(args)
    if args.export is not None:
        check_file(args.export, "--export", args.images)
        check_not_indexed(args.export, "--export", args.out)
    result: dict[str, Any] = {"index": str(args.out)}
    if args.images or args.export is None:
        check_folder(args.out)
        sources = [
            Source(path, "train" if args.split is None else args.split, args.image, args.caption)
            for path in args.images
        ]
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
        check_not_indexed(args.export, "--export", args.out, index.table)
        result |= {"exported": export(index.table, args.export, index.manifest.dimensions), "file": str(args.export)}
    print(json.dumps(result, indent=2, ensure_ascii=False) if args.json else _table(result))


def _check_unused(args: argparse.Namespace) -> None:
    """Refuse options that without IMAGES would be left out in silence."""
    # The index names its columns and splits; an export reads no images at all
    names = ["split", "image", "caption"] + ["clip", "device", "batch_size", "workers"] * (args.export is not None)
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(args, name) != args.usual(name)]
    if given:
        raise ValueError(f"without IMAGES nothing is done with {', '.join(given)}: name IMAGES, or leave it out")


def check_not_indexed(file: Path, option: str, folder: Path, table: Table | None = None) -> None:
    """Check that a file that is to be written replaces none of an index.

    Args:
        file: the file to write.
        option: the option that names it, for the message.
        folder: of the index.
        table: its images, which are then looked at, too.

    Raises:
        ValueError: it is in the folder, or one of the images.
    """
    from dalle.files import check_file, expand_home

    if expand_home(folder).resolve() in file.resolve().parents:
        raise ValueError(f"{file} is in {folder}, which holds the files of an index alone: give another {option}")
    if table is not None and file.exists():  # perhaps as one of the images of a folder, or a pattern
        check_file(file, option, {str(found) for batch in table.batches for found in batch.column("file").to_pylist()})


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
