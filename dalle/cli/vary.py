"""python -m dalle vary: other images that say the same as a given one, by an unCLIP."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dalle.cli.frames import add_common


def add(commands: Any) -> None:
    """Add the command to the subparsers of `dalle`."""
    command = commands.add_parser("vary", help="other images that say the same as a given one")
    command.add_argument("image", type=Path, metavar="IMAGE", help="to be varied; its middle square is used")
    command.add_argument("--n", type=int, default=4, help="how many (default: %(default)s)")
    command.add_argument(
        "--eta",
        type=float,
        default=0.5,
        help="0: the image itself; 1: all that its embedding does not say is new (default: %(default)s)",
    )
    add_common(command, "variations.png")
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from dalle.cli.frames import open_model, write_frames
    from dalle.images.read import read_image

    image = read_image(args.image)
    pipe = open_model(args)
    write_frames(pipe.vary(image, args.n, args.eta, args.seed, args.steps), args.out)
    print(args.out)
