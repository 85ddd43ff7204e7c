"""Small folders of images and captions."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image


def image(kind: str = "png") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (9, 90, 200)).save(file, kind)
    return file.getvalue()


def put(root: Path, **texts: str | bytes | None) -> Path:
    """Files by their names (two underscores: a folder, one: a dot); None is an image."""
    for name, content in texts.items():
        file = root / name.replace("__", "/").replace("_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        content = image() if content is None else content
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    return root
