"""Search of images by text, by image, or by both: an index of CLIP's vectors in a folder."""

from __future__ import annotations

from dalle.apps.search.index import Hit, ImageIndex

__all__ = ["Hit", "ImageIndex"]
