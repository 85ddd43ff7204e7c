"""Common options of the commands vary, blend and edit, and their output: several images in one file."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dalle.cli.outputs import new_file
from dalle.files import atomic_file, check_file, check_folder

if TYPE_CHECKING:  # torch takes a second to import: not for --help
    from PIL import Image

    from dalle.pipelines.unclip import UnCLIP

_FPS = 8  # frames per second of a video


def add_common(command: argparse.ArgumentParser, out: str, seed: str) -> None:
    """Add the options that vary, blend and edit share.

    Args:
        command: parser to extend.
        out: name of the output where there is no --out.
        seed: what --seed is the random seed of, for --help.
    """
    command.add_argument(
        "--model", required=True, metavar="FOLDER", help="unCLIP folder written by `dalle assemble`, or a hub id"
    )
    command.add_argument(
        "--prior", metavar="SOURCE", help="another prior of the same CLIP; of Kandinsky 2.2 the published one"
    )
    command.add_argument("--steps", type=int, default=50, help="steps of DDIM inversion and of sampling (%(default)s)")
    command.add_argument("--seed", type=int, default=0, help=f"random seed {seed} (%(default)s)")
    command.add_argument("--device", default="auto", help="auto takes an accelerator if there is one (%(default)s)")
    stem, suffix = Path(out).stem, Path(out).suffix
    command.add_argument(
        "--out",
        type=Path,
        help="output: .png for a row of images; .mp4, .gif or .webp for a video; an existing file is replaced "
        f"(default: {out}, or {stem}-2{suffix} and so on, a name that is free)",
    )
    command.set_defaults(default_out=Path(out))


def check_out(out: Path, inputs: Iterable[Path]) -> None:
    """Refuse an output file that cannot be written, before images are generated for it.

    Args:
        out: the file.
        inputs: the files that are read.

    Raises:
        ValueError: the suffix is unknown, PyAV is missing for an MP4, the folder does not exist, or the file is one of
            `inputs`.
    """
    from dalle.images.video import SUFFIXES, check_video

    if out.suffix.lower() not in (".png", *SUFFIXES):
        raise ValueError(f"--out is {out}: expected a name that ends in .png, {', '.join(SUFFIXES)}")
    if out.suffix.lower() != ".png":
        check_video(out)
    if not out.absolute().parent.is_dir():
        raise ValueError(f"--out is {out}: there is no folder {out.absolute().parent}")
    check_file(out, "--out", inputs)


def open_model(args: argparse.Namespace, inputs: Iterable[Path]) -> UnCLIP:
    """Check --out, which must not be one of the `inputs`, then load the model."""
    from dalle.pipelines.unclip import UnCLIP

    if args.out is None:
        check_folder(Path())
    else:
        check_out(args.out, inputs)
    return UnCLIP.from_pretrained(args.model, args.prior, args.device)


def sample_frames(args: argparse.Namespace, make: Callable[..., list[Image.Image]]) -> None:
    """Generate images and write them to --out; if that is broken off, those that are finished, but over no file.

    Args:
        args: the command line.
        make: generates the images; it takes `progress` and `finished` as `UnCLIP.vary` does.
    """
    from dalle.cli.sample_prompts import progress_bar

    images: list[Image.Image] = []
    try:
        with progress_bar(" passes") as bar:

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            make(progress=progress, finished=images.extend)
    except KeyboardInterrupt:
        args.kept = "nothing was finished"
        if images:
            # A file of that name may have all images of an earlier run
            file = _write_new(images, args.out or args.default_out)
            args.kept = f"{len(images)} finished image{'s' * (len(images) > 1)}: {file}"
        raise
    if args.out is None:
        print(_write_new(images, args.default_out))
        return
    write_frames(images, args.out)
    print(args.out)


def _write_new(images: Sequence[Image.Image], out: Path) -> Path:
    """Write images to `out`, or to a numbered name if there is such a file; returns the path."""
    with new_file(out) as file:
        write_frames(images, file)
    return file


def write_frames(images: Sequence[Image.Image], out: Path) -> None:
    """Write images as a row, or as a video, atomically."""
    from PIL import Image

    from dalle.images.video import write_video

    if out.suffix.lower() != ".png":
        write_video(images, out, _FPS, lossless=True)
        return
    width, height = images[0].size
    row = Image.new("RGB", (width * len(images), height))
    for column, image in enumerate(images):
        row.paste(image, (column * width, 0))
    with atomic_file(out) as new:
        row.save(new, format="PNG")
