"""PNG files with metadata on how they were generated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from PIL import Image, PngImagePlugin

from dalle.files import atomic_file


def write_png(image: Image.Image, path: Path, texts: Mapping[str, str]) -> None:
    """Write a PNG atomically, with `texts` as metadata in iTXt chunks, which hold any Unicode text."""
    metadata = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        metadata.add_itxt(name, text)
    with atomic_file(path) as part:
        image.save(part, "PNG", pnginfo=metadata)
