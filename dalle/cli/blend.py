"""python -m dalle blend: what lies between images and texts, by an unCLIP."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dalle.cli.frames import add_common

_EPILOG = 'With weights: blend a.png "a hat:0.3" b.png:0.7, one image of all; what has no weight has 1.'


def add(commands: Any) -> None:
    """Add the command to the subparsers of `dalle`."""
    command = commands.add_parser("blend", help="images between images and texts", epilog=_EPILOG)
    command.add_argument("items", nargs="+", metavar="ITEM[:WEIGHT]", help="image files; what is no file is a text")
    command.add_argument("--frames", type=int, default=9, help="of two without weights, both ends included (9)")
    add_common(command, "blend.png")
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from dalle.cli.frames import open_model, write_frames
    from dalle.images.read import read_image

    found = [parse_item(text) for text in args.items]
    items = [read_image(Path(name)) if Path(name).is_file() else name for name, _ in found]
    weighted = any(weight is not None for _, weight in found)
    weights = [1.0 if weight is None else weight for _, weight in found] if weighted or len(found) > 2 else None
    pipe = open_model(args)
    write_frames(pipe.blend(items, weights, args.frames, args.seed, args.steps), args.out)
    print(args.out)


def parse_item(text: str) -> tuple[str, float | None]:
    """An image or a text, and the weight behind its last colon, if that is a number and there is no such file."""
    name, colon, end = text.rpartition(":")
    if not colon or Path(text).is_file():
        return text, None
    try:
        return name, float(end)
    except ValueError:
        return text, None
