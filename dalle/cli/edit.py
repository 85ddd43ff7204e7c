"""python -m dalle edit: edit an image by the difference of two texts, with an unCLIP."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from dalle.cli.frames import add_common
from dalle.cli.streams import utf8_argument

_THETA = 0.35


def add(commands: Any) -> None:
    """Add the command to the subparsers of `dalle`."""
    command = commands.add_parser("edit", help="edit an image by the difference of two texts (unCLIP)")
    command.add_argument("image", type=Path, metavar="IMAGE", help="image to edit; its central square is used")
    command.add_argument(
        "--from",
        dest="before",
        type=utf8_argument,
        default="a photo",
        metavar="TEXT",
        help="caption of the image (%(default)s)",
    )
    command.add_argument(
        "--to", dest="after", type=utf8_argument, required=True, metavar="TEXT", help="caption of the result"
    )
    command.add_argument(
        "--theta",
        type=float,
        action="append",
        help=f"strength from 0 to 1, usually 0.25 to 0.5; given several times: an image for each ({_THETA})",
    )
    command.add_argument(
        "--frames",
        type=int,
        default=1,
        help="number of images of one theta, evenly spaced from 0 to it; 1: only the last (%(default)s)",
    )
    add_common(command, "edit.png", "of the upsampler; nothing else of an edit is random")
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from dalle.cli.frames import open_model, sample_frames
    from dalle.images.read import read_image

    image = read_image(args.image)
    pipe = open_model(args, [args.image])
    theta = args.theta or _THETA
    sample_frames(args, partial(pipe.edit, image, args.before, args.after, theta, args.frames, args.seed, args.steps))
