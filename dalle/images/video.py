"""Writes frames as a video: MP4 by PyAV (the extra `video`), GIF and WebP by Pillow."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import Image

from dalle.files import atomic_file, install_command

SUFFIXES = (".mp4", ".gif", ".webp")


def check_video(path: Path) -> None:
    """Refuse a video that cannot be written, before any frame is computed.

    Raises:
        ValueError: the format is not supported, or PyAV is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: unknown video format; give a name that ends in {', '.join(SUFFIXES)}")
    if path.suffix.lower() == ".mp4":
        _av()


def write_video(frames: Iterable[Image.Image], path: Path, fps: int, lossless: bool = False) -> None:
    """Write images of one size as a video, whole or not at all.

    Args:
        frames: at least one. Those of an MP4 are taken one by one.
        path: ends in one of SUFFIXES.
        fps: frames per second.
        lossless: of WebP, keep all pixels exactly. A GIF has 256 colors, and MP4 is compressed in any case.

    Raises:
        ValueError: as `check_video`.
    """
    check_video(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as part:  # it has the suffix of `path`, by which Pillow and PyAV choose the format
        if path.suffix.lower() == ".mp4":
            _write_mp4(frames, part, fps)
        else:
            first, *others = [frame.convert("RGB") for frame in frames]
            options: dict[str, Any] = {"lossless": lossless} if path.suffix.lower() == ".webp" else {}
            first.save(part, save_all=True, append_images=others, duration=round(1000 / fps), loop=0, **options)


def _write_mp4(frames: Iterable[Image.Image], path: Path, fps: int) -> None:
    with _av().open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=Fraction(fps), options={"crf": "17"})  # 17: no loss that one sees
        for number, frame in enumerate(frames):
            image = frame.convert("RGB")
            if number == 0:  # 4:2:0 stores colors at half the resolution: sides must be even
                stream.width, stream.height = image.width - image.width % 2, image.height - image.height % 2
                stream.pix_fmt = "yuv420p"
            file.mux(stream.encode(_av().VideoFrame.from_image(image.crop((0, 0, stream.width, stream.height)))))
        file.mux(stream.encode())  # what the encoder still holds


def _av() -> Any:
    try:
        import av
    except ImportError:
        raise ValueError(
            f"MP4 videos need PyAV: {install_command('video')}, or give a name that ends in .gif or .webp"
        ) from None
    return av
