"""python -m dalle vary: generate variations of an image with an unCLIP."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from dalle.cli.frames import add_common


def add(commands: Any) -> None:
    """Add the command to the subparsers of `dalle`."""
    command = commands.add_parser("vary", help="variations of an image (unCLIP)")
    command.add_argument("image", type=Path, metavar="IMAGE", help="image to vary; its central square is used")
    command.add_argument("--n", type=int, default=4, help="number of variations (%(default)s)")
    command.add_argument(
        "--eta",
        type=float,
        default=0.5,
        help="from 0, which reconstructs the image, to 1, which keeps only what its CLIP embedding holds (%(default)s)",
    )
    add_common(command, "variations.png", "of the first variation; the next ones have the next seeds")
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from dalle.cli.frames import open_model, sample_frames
    from dalle.images.read import read_image

    image = read_image(args.image)
    pipe = open_model(args, [args.image])
    sample_frames(args, partial(pipe.vary, image, args.n, args.eta, args.seed, args.steps))
