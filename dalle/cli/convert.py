"""python -m dalle convert: convert published weights to a model folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dalle.cli.export import DTYPES
from dalle.config import apply_overrides

_PATIENCE = 2.0  # seconds of writing after which a progress bar appears
GIVEN = (
    "facts that the files do not contain, for example heads=16 (docs/checkpoints.md), or image_size=64 to use an image "
    "tokenizer, also one of ours, at another size than it was trained at"
)


def add(commands: Any) -> None:
    """Add the command to the subparsers of `dalle`."""
    command = commands.add_parser("convert", help="convert published weights to a model folder")
    command.add_argument("source", metavar="SOURCE", help="published file or folder, or a hub id")
    command.add_argument("out", type=Path, metavar="OUT", help="folder to write, which must not exist")
    command.add_argument("given", nargs="*", metavar="key=value", help=GIVEN)
    command.add_argument("--dtype", choices=DTYPES, default="float32", help="dtype of stored weights (%(default)s)")
    command.add_argument("--image-tokenizer", metavar="SOURCE", help="image tokenizer, if the files do not contain it")
    command.add_argument("--text-tokenizer", metavar="SOURCE", help="text tokenizer, if the files do not contain it")
    command.add_argument("--prior", metavar="SOURCE", help="prior of Kandinsky 2.2, which is published apart")
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from dalle.checkpoints.published.convert import convert
    from dalle.files import check_folder

    check_folder(args.out, "OUT")
    with tqdm(unit="B", unit_scale=True, desc="writing", dynamic_ncols=True, delay=_PATIENCE, disable=None) as bar:

        def show(done: int, total: int) -> None:
            if total != bar.total:  # the next file of an unCLIP
                bar.reset(total)
            bar.update(done - bar.n)

        found = convert(
            args.source,
            args.out,
            args.dtype,
            image_tokenizer=args.image_tokenizer,
            text_tokenizer=args.text_tokenizer,
            prior=args.prior,
            given=apply_overrides({}, args.given),
            progress=show,
        )
    print(f"{args.out}: {found.family}; license of the weights: {found.license}")
    for line in _missing(args.out):
        print(line)


def _missing(out: Path) -> list[str]:
    """A line for each tokenizer that a converted model still needs."""
    from dalle.checkpoints.image_codes import recorded_codes
    from dalle.checkpoints.model_folder import ModelFolder

    folder = ModelFolder(out)
    if folder.config.get("stage") != "dalle":
        return []
    codes, lines = recorded_codes(folder), []
    if "image_tokenizer" not in folder.components:
        fetched = f"{codes.source} is fetched when the model is used, or " if codes and codes.source else ""
        lines.append(
            f"{out} has no image tokenizer, which the files did not contain: {fetched}it is given by "
            "--image-tokenizer, to this command or to those that use the model"
        )
    if "text_tokenizer" not in folder.components and "text_encoder" not in folder.config:
        lines.append(
            f"{out} has no text tokenizer, which the files did not contain: it is given by --text-tokenizer, to this "
            "command or to those that use the model"
        )
    return lines
