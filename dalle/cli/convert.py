"""python -m dalle convert: published weights of any kind as a folder of ours."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dalle.cli.export import DTYPES
from dalle.config import apply_overrides

GIVEN = "what the files do not tell, for example heads=16 (docs/checkpoints.md)"


def add(commands: Any) -> None:
    """Add the command to the subparsers of `dalle`."""
    command = commands.add_parser("convert", help="write published weights of any kind as a folder of ours")
    command.add_argument("source", metavar="SOURCE", help="file or folder as it was published, or a hub id")
    command.add_argument("out", type=Path, metavar="OUT", help="folder to write, which must not be there")
    command.add_argument("given", nargs="*", metavar="key=value", help=GIVEN)
    command.add_argument("--dtype", choices=DTYPES, default="float32", help="how weights are stored (%(default)s)")
    command.add_argument("--image-tokenizer", metavar="SOURCE", help="of a model whose files do not hold it")
    command.add_argument("--text-tokenizer", metavar="SOURCE", help="of a model or CLIP whose files do not hold it")
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from dalle.checkpoints.published.convert import convert

    found = convert(
        args.source,
        args.out,
        args.dtype,
        image_tokenizer=args.image_tokenizer,
        text_tokenizer=args.text_tokenizer,
        given=apply_overrides({}, args.given),
    )
    print(f"{args.out}: {found.family}; its license: {found.license}")
