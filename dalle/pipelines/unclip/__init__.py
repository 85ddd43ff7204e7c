"""UnCLIP (DALL-E 2): text to embedding to image, and images changed through their embedding and their noise."""

from dalle.pipelines.unclip.pipeline import UnCLIP

__all__ = ["UnCLIP"]
