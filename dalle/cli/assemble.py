"""python -m dalle assemble: prior, decoder and upsampler as one unCLIP."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Add the command to the subparsers of `dalle`."""
    command = commands.add_parser("assemble", help="prior, decoder and upsampler as one unCLIP")
    command.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    command.add_argument("--prior", required=True, metavar="FOLDER", help="of stage prior (or a hub id)")
    command.add_argument("--decoder", required=True, metavar="FOLDER", help="of stage diffusion, kind decoder")
    command.add_argument("--upsampler", metavar="FOLDER", help="of stage diffusion, kind upsampler; may be left out")
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from dalle.checkpoints.unclip import assemble

    assemble(args.out, args.prior, args.decoder, args.upsampler)
    size = sum(file.stat().st_size for file in args.out.rglob("*") if file.is_file())
    print(f"{args.out}: {size / 1e6:.1f} MB")
