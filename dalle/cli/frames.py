"""What the commands on unCLIP's images share: their options, and writing several images as one file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dalle.files import atomic_file

if TYPE_CHECKING:  # torch takes a second to import: not for --help
    from PIL import Image

    from dalle.pipelines.unclip import UnCLIP

_ANIMATED = (".gif", ".webp")
_MS = 120  # a frame of an animation


def add_common(command: argparse.ArgumentParser, out: str) -> None:
    """Options that all of them have."""
    command.add_argument("--model", required=True, metavar="FOLDER", help="an unCLIP (`dalle assemble`), or a hub id")
    command.add_argument("--steps", type=int, default=50, help="of inversion and of sampling (default: %(default)s)")
    command.add_argument("--seed", type=int, default=0, help="of what is drawn (default: %(default)s)")
    command.add_argument("--device", default="auto", help="auto takes an accelerator if there is one (%(default)s)")
    command.add_argument(
        "--out", type=Path, default=Path(out), help="a row of images (.png), or frames (.gif, .webp) (%(default)s)"
    )


def check_out(out: Path) -> None:
    """Refuse a file that cannot be written, before any time goes into what it is for.

    Raises:
        ValueError: its ending is none that is known, or there is no such folder.
    """
    if out.suffix not in (".png", *_ANIMATED):
        raise ValueError(f"--out is {out}: expected a name that ends in .png, .gif or .webp")
    if not out.absolute().parent.is_dir():
        raise ValueError(f"--out is {out}: there is no folder {out.absolute().parent}")


def open_model(args: argparse.Namespace) -> UnCLIP:
    """The model of a command, once its output can be written."""
    from dalle.pipelines.unclip import UnCLIP

    check_out(args.out)
    return UnCLIP.from_pretrained(args.model, device=args.device)


def write_frames(images: Sequence[Image.Image], out: Path) -> None:
    """Write images as a row, or as frames that repeat; whole or not at all."""
    from PIL import Image

    if out.suffix in _ANIMATED:
        with atomic_file(out) as new:
            options = {"lossless": True} if out.suffix == ".webp" else {}
            images[0].save(
                new,
                format=out.suffix[1:].upper(),
                save_all=True,
                append_images=list(images[1:]),
                duration=_MS,
                loop=0,
                **options,
            )
        return
    width, height = images[0].size
    row = Image.new("RGB", (width * len(images), height))
    for place, image in enumerate(images):
        row.paste(image, (place * width, 0))
    with atomic_file(out) as new:
        row.save(new, format="PNG")
