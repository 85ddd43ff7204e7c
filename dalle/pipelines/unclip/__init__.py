"""The unCLIP pipeline (DALL-E 2): text to embedding to image; variations, blends and edits of given images."""

from dalle.pipelines.unclip.pipeline import UnCLIP

__all__ = ["UnCLIP"]
