"""The hits of a search as one HTML file with thumbnails, which opens from the disk."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image

from dalle.apps.search.hit import Hit
from dalle.apps.search.index import ImageIndex
from dalle.data.base import BadRecord, read_image
from dalle.files import write_text

_SIDE = 224  # pixels of a thumbnail
_STYLE = (
    "body{font:15px sans-serif;margin:2em;background:#fafafa;color:#222}"
    "main{display:flex;flex-wrap:wrap;gap:16px}figure{margin:0;width:224px}"
    "img,.gone{width:224px;height:224px;border:1px solid #ddd;background:#fff;display:block}"
    ".gone{font-size:13px;color:#777;padding:8px;box-sizing:border-box;overflow:hidden}"
    "figcaption{font-size:13px;overflow-wrap:anywhere}b{color:#777;font-weight:normal}"
)


def write_page(path: Path, index: ImageIndex, title: str, hits: Sequence[Hit]) -> None:
    """Write the page atomically; its folder is created, but no folders above it.

    Raises:
        ValueError: there is no folder for it.
    """
    figures = "\n".join(_figure(index, hit) for hit in hits)
    head = f'<head><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style></head>'
    text = f"<!DOCTYPE html>\n<html>{head}\n<body><h1>{escape(title)}</h1>\n<main>\n{figures}\n</main></body></html>\n"
    if not path.parent.parent.is_dir():
        raise ValueError(f"{path.parent.parent}: no such folder; make it, or write the page to another place")
    path.parent.mkdir(exist_ok=True)
    write_text(path, text)


def _figure(index: ImageIndex, hit: Hit) -> str:
    try:
        image = f'<img alt="" src="{thumbnail(index.read(hit), hit.path)}">'
    except BadRecord as error:
        image = f'<div class="gone">{escape(error.reason)}</div>'
    if Path(hit.path).is_file():
        image = f'<a href="{escape(Path(hit.path).absolute().as_uri())}">{image}</a>'
    caption = f"<b>{hit.likeness:.3f}</b> {escape(hit.caption)}<br><b>{escape(hit.path)}</b>"
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def thumbnail(content: bytes, name: str) -> str:
    """Make a data URL of a small JPEG that shows all of an image, padded with white to a square.

    Raises:
        BadRecord: it cannot be read.
    """
    buffer = io.BytesIO()
    Image.fromarray(read_image(content, name, _SIDE, "pad")).save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
