"""python -m dalle assemble: combine a prior, a decoder and an upsampler into one unCLIP folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Add the command to the subparsers of `dalle`."""
    command = commands.add_parser("assemble", help="combine a prior, a decoder and an upsampler into one unCLIP folder")
    command.add_argument(
        "out",
        type=Path,
        metavar="OUT",
        help="unCLIP folder to write, for --model of sample, vary, blend and edit; an unCLIP that is there is "
        "replaced, its README.md kept",
    )
    command.add_argument(
        "--prior", required=True, metavar="FOLDER", help="folder of a trained prior (RUN/model), or its hub id"
    )
    command.add_argument(
        "--decoder", required=True, metavar="FOLDER", help="folder of a trained decoder (RUN/model), or its hub id"
    )
    command.add_argument(
        "--upsampler",
        metavar="FOLDER",
        help="folder of a trained upsampler (RUN/model), or its hub id (default: none; images have the decoder's size)",
    )
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from dalle.checkpoints.unclip import assemble
    from dalle.files import check_folder

    check_folder(args.out, "OUT")
    replaced = assemble(args.out, args.prior, args.decoder, args.upsampler)
    size = sum(file.stat().st_size for file in args.out.rglob("*") if file.is_file())
    print(f"{args.out}: {size / 1e6:.1f} MB{', in place of the unCLIP that was there' if replaced else ''}")
