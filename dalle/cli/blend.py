"""python -m dalle blend: interpolate between images and texts with an unCLIP."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dalle.cli.frames import add_common
from dalle.cli.streams import utf8_argument
from dalle.files import url_of

if TYPE_CHECKING:  # torch takes a second to import: not for --help
    from PIL import Image

_FRAMES = 9
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
        help="image files or texts: what is not a file, and not like the name of one, is a text",
    )
    command.add_argument(
        "--frames",
        type=int,
        help=f"number of images between two items without weights, both ends included ({_FRAMES})",
    )
    add_common(command, "blend.png", "of texts and of the upsampler")
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from dalle.cli.frames import open_model, sample_frames

    parsed = [parse_item(text) for text in args.items]
    has_weights = any(weight is not None for _, weight in parsed)
    weights = [1.0 if weight is None else weight for _, weight in parsed] if has_weights or len(parsed) > 2 else None
    if args.frames is not None and weights is not None:
        given = "weights" if has_weights else f"{len(parsed)} items"
        raise ValueError(
            f"--frames is for two items without weights, and {given} give one image: leave one of them out"
        )
    items = [_read(name) for name, _ in parsed]
    pipe = open_model(args, [Path(name) for name, _ in parsed if _is_image(name)])
    frames = _FRAMES if args.frames is None else args.frames
    sample_frames(args, partial(pipe.blend, items, weights, frames, args.seed, args.steps))


def parse_item(text: str) -> tuple[str, float | None]:
    """Split "ITEM:WEIGHT". Without a number after the last colon, or if all of it is a file, there is no weight.

    Raises:
        ValueError: nothing is after the colon, or an image has something else than a number there.
    """
    name, colon, end = text.rpartition(":")
    if not colon or _exists(text, Path.is_file):
        return text, None
    try:
        return name, float(end)
    except ValueError:
        # The colon of a text is its own; an image with a misspelled weight would be taken for a text in silence
        if _is_image(name):
            raise ValueError(f"the weight of {name} is {end!r}: give a number, such as {name}:0.5") from None
        if not end.strip():
            raise ValueError(
                f"{text!r} ends without a weight: give a number, such as {name}:0.5, or leave the colon out"
            ) from None
        return text, None


def _read(name: str) -> Image.Image | str:
    """An item: an image if it is one's name, else a text.

    Raises:
        ValueError: the image cannot be read, or what would be a text is a folder or like a path with a mistake.
    """
    from dalle.images.read import read_image

    if _is_image(name):
        return read_image(Path(name))
    if name and _exists(name, Path.is_dir):
        raise ValueError(f"{name} is a folder: give an image file, or other words if it is a text")
    if _is_path(name):
        raise ValueError(f"{name}: no such image; if it is a text, write spaces around the /")
    return utf8_argument(name)


def _is_image(name: str) -> bool:
    """Whether an item names an image, which may be missing."""
    from dalle.images.read import EXTENSIONS

    # A file whose name is misspelled would be taken for a text in silence: read_image says that it is not there
    return _exists(name, Path.is_file) or name.lower().endswith(EXTENSIONS) or url_of(name) is not None


def _is_path(name: str) -> bool:
    """Whether what is no file is like a path: in a folder that exists. Such a text is rare, and can have spaces."""
    if "/" not in name or any(character.isspace() for character in name):
        return False
    return name.startswith(("./", "../", "~/")) or _exists(str(Path(name).parent), Path.is_dir)


def _exists(name: str, kind: Callable[[Path], bool]) -> bool:
    """Whether there is a file, or a folder, of that name."""
    try:
        return kind(Path(name))
    except (OSError, ValueError):  # longer than a name of a file can be, or with a NUL
        return False
