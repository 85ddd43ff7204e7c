"""Search of images by text, by image, or by both: an index of CLIP's vectors in a folder."""

from __future__ import annotations

from dalle.apps.search.hit import Hit
from dalle.apps.search.index import ImageIndex

__all__ = ["Hit", "ImageIndex"]
