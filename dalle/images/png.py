"""PNG files that say in their metadata how they were made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from PIL import Image, PngImagePlugin

from dalle.files import atomic_file


def write_png(image: Image.Image, path: Path, texts: Mapping[str, str]) -> None:
    """Write a PNG whole or not at all, with `texts` as metadata: iTXt chunks, so that any script is kept."""
    metadata = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        metadata.add_itxt(name, text)
    with atomic_file(path) as part:
        image.save(part, "PNG", pnginfo=metadata)
