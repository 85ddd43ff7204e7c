#!/usr/bin/env python3
"""Draw the images of the cards of data/: python data/sheet.py (prints the captions of composed.webp)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from dalle.data.drawings import DrawingsConfig, DrawingsDataset
from dalle.data.drawings.captions import STYLES

HERE = Path(__file__).parent
SIDE, GAP = 96, 6
CONCEPTS = """
red heart, grinning face, cat face, elephant, rooster, octopus, sunflower, cactus, red apple, hamburger,
automobile, rocket, house, guitar, soccer ball, umbrella with rain drops, crown, key, rainbow, ghost
"""
COMPOSED, ROWS = 40, 4


def grid(rows: list[list[np.ndarray]]) -> Image.Image:
    """Images in rows on white."""
    step = SIDE + GAP
    sheet = np.full((len(rows) * step + GAP, max(map(len, rows)) * step + GAP, 3), 255, dtype=np.uint8)
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            sheet[GAP + r * step : (r + 1) * step, GAP + c * step : (c + 1) * step] = image
    return Image.fromarray(sheet)


def main() -> None:
    emoji = DrawingsDataset(DrawingsConfig(sets=("emoji",)), "known", SIDE)
    at = {
        (style, concept.names["en"]): index
        for index, (style, concept) in enumerate(zip(emoji.styles, emoji.concepts, strict=True))
    }
    names = [name.strip() for name in CONCEPTS.split(",")]
    white = np.full((SIDE, SIDE, 3), 255, dtype=np.uint8)
    styles = [
        [emoji.pair(at[style, name], 0).image if (style, name) in at else white for name in names] for style in STYLES
    ]
    grid(styles).save(HERE / "emoji" / "contact_sheet.webp", quality=90, method=6)

    both = DrawingsDataset(DrawingsConfig(scenes=0.3, backgrounds=0.5, flips=0.25, weights=(1, 1)), "train", SIDE)
    shown = [both.pair(index, seed=2) for index in range(31, len(both), len(both) // COMPOSED)][:COMPOSED]
    across = COMPOSED // ROWS
    rows = [[pair.image for pair in shown[row * across : (row + 1) * across]] for row in range(ROWS)]
    grid(rows).save(HERE / "composed.webp", quality=90, method=6)
    for number, pair in enumerate(shown, 1):
        print(f"{number}. {pair.caption}")


if __name__ == "__main__":
    main()
