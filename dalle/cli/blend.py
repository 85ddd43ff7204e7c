"""python -m dalle blend: interpolate between images and texts with an unCLIP."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from dalle.cli.frames import add_common
from dalle.cli.streams import utf8_argument

_EPILOG = (
    "Two items without weights give a sequence of --frames images. More than two, or weights, give one image: "
    'blend a.png "a hat:0.3" b.png:0.7 (the default weight is 1).'
)


def add(commands: Any) -> None:
    """Add the command to the subparsers of `dalle`."""
    command = commands.add_parser("blend", help="interpolate between images and texts (unCLIP)", epilog=_EPILOG)
    command.add_argument(
        "items",
        nargs="+",
        metavar="ITEM[:WEIGHT]",
        help="image files or texts: what is not a file and does not end like an image is a text",
    )
    command.add_argument(
        "--frames", type=int, default=9, help="number of images between two items, both ends included (%(default)s)"
    )
    add_common(command, "blend.png", "of texts and of the upsampler")
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from dalle.cli.frames import open_model, sample_frames
    from dalle.images.read import read_image

    parsed = [parse_item(text) for text in args.items]
    # A file whose name is misspelled would be taken for a text in silence: read_image says that it is not there
    files = [Path(name) for name, _ in parsed if _is_image(name)]
    items = [read_image(Path(name)) if _is_image(name) else utf8_argument(name) for name, _ in parsed]
    has_weights = any(weight is not None for _, weight in parsed)
    weights = [1.0 if weight is None else weight for _, weight in parsed] if has_weights or len(parsed) > 2 else None
    pipe = open_model(args, files)
    sample_frames(args, partial(pipe.blend, items, weights, args.frames, args.seed, args.steps))


def parse_item(text: str) -> tuple[str, float | None]:
    """Split "ITEM:WEIGHT". Without a number after the last colon, or if all of it is a file, there is no weight.

    Raises:
        ValueError: an image has something else than a number after its colon.
    """
    name, colon, end = text.rpartition(":")
    if not colon or _is_file(text):
        return text, None
    try:
        return name, float(end)
    except ValueError:
        # The colon of a text is its own; an image with a misspelled weight would be taken for a text in silence
        if _is_image(name):
            raise ValueError(f"the weight of {name} is {end!r}: give a number, such as {name}:0.5") from None
        return text, None


def _is_image(name: str) -> bool:
    """Whether an item names an image, which may be missing."""
    from dalle.images.read import EXTENSIONS

    return _is_file(name) or name.lower().endswith(EXTENSIONS)


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # longer than a name of a file can be
        return False
