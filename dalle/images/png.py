"""PNG files with metadata on how they were generated, and those of others without their metadata."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from dalle.files import atomic_file

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# The chunks that pixels are made of, and the orientation, whose faults are passed over elsewhere
_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf")


def write_png(image: Image.Image, path: Path, texts: Mapping[str, str]) -> None:
    """Write a PNG atomically, with `texts` as metadata in iTXt chunks, which hold any Unicode text."""
    with atomic_file(path) as part:
        image.save(part, "PNG", pnginfo=_metadata(texts))


def png_bytes(image: Image.Image, texts: Mapping[str, str]) -> bytes:
    """Encode an image as PNG with `texts` as metadata, like `write_png`."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=_metadata(texts))
    return buffer.getvalue()


def generation_texts(
    prompt: str, seed: int, options: Mapping[str, Any], model_hash: str, software: str
) -> dict[str, str]:
    """The metadata of a generated image: with it and the model, the image can be generated again."""
    return {
        "prompt": prompt,
        "seed": str(seed),
        "options": json.dumps(options, ensure_ascii=False),
        "model": model_hash,
        "Software": software,
    }


def without_metadata(data: bytes) -> bytes | None:
    """The PNG file without chunks that its pixels do not need, such as texts and profiles; None if it is no PNG."""
    if not data.startswith(_SIGNATURE):
        return None
    kept, at = [_SIGNATURE], len(_SIGNATURE)
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")  # length, type and checksum around the content
        if data[at + 4 : at + 8] in _PIXELS:
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


def _metadata(texts: Mapping[str, str]) -> PngImagePlugin.PngInfo:
    metadata = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        metadata.add_itxt(name, text)
    return metadata
