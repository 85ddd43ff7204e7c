"""The embedded drawings (emoji in 7 art styles, vector icons in 22), composed into captioned images on the fly."""

from dalle.data.drawings.composition import Composition
from dalle.data.drawings.config import DrawingsConfig
from dalle.data.drawings.dataset import DrawingsDataset
from dalle.data.drawings.sets import Drawing

__all__ = ["Composition", "Drawing", "DrawingsConfig", "DrawingsDataset"]
