"""The embedded drawings, emoji in 7 art styles and vector icons in 22, composed with captions on the fly."""

from dalle.data.drawings.composition import Composition
from dalle.data.drawings.dataset import Drawings, DrawingsData
from dalle.data.drawings.sets import Drawing

__all__ = ["Composition", "Drawing", "Drawings", "DrawingsData"]
