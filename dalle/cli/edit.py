"""python -m dalle edit: an image changed as one text differs from another, by an unCLIP."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dalle.cli.frames import add_common


def add(commands: Any) -> None:
    """Add the command to the subparsers of `dalle`."""
    command = commands.add_parser("edit", help="an image changed as one text differs from another")
    command.add_argument("image", type=Path, metavar="IMAGE", help="to be changed; its middle square is used")
    command.add_argument("--from", dest="before", default="a photo", metavar="TEXT", help="what it shows (%(default)s)")
    command.add_argument("--to", dest="after", required=True, metavar="TEXT", help="what it is to show")
    command.add_argument("--theta", type=float, default=0.35, help="how far, 0 to 1; 0.25 to 0.5 as a rule (0.35)")
    command.add_argument("--frames", type=int, default=1, help="images from 0 to theta; 1: the last (%(default)s)")
    add_common(command, "edit.png")
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from dalle.cli.frames import open_model, write_frames
    from dalle.images.read import read_image

    image = read_image(args.image)
    pipe = open_model(args)
    write_frames(pipe.edit(image, args.before, args.after, args.theta, args.frames, args.steps), args.out)
    print(args.out)
