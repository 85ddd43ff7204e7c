#!/usr/bin/env python3
"""Draw the pictures of this folder's card: python data/emoji/sheet.py (prints the captions of composed.webp)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from dalle.data.captions import STYLES
from dalle.data.emoji import EmojiData, EmojiPairs, paint

HERE = Path(__file__).parent
GAP = 6
CONCEPTS = """
red heart, grinning face, cat face, elephant, rooster, octopus, sunflower, cactus, red apple, hamburger,
automobile, rocket, house, guitar, soccer ball, umbrella with rain drops, crown, key, rainbow, ghost
"""
COMPOSED = 16


def grid(rows: list[list[np.ndarray]]) -> Image.Image:
    """Pictures of 64 x 64 in rows on white."""
    step = 64 + GAP
    sheet = np.full((len(rows) * step + GAP, max(map(len, rows)) * step + GAP, 3), 255, dtype=np.uint8)
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            sheet[GAP + r * step : (r + 1) * step, GAP + c * step : (c + 1) * step] = image
    return Image.fromarray(sheet)


def main() -> None:
    pairs = EmojiPairs(EmojiData(), "train")
    at = {
        (style, concept.names["en"]): i
        for i, (style, concept) in enumerate(zip(pairs.styles, pairs.concepts, strict=True))
    }
    names = [name.strip() for name in CONCEPTS.split(",")]
    white = np.full((64, 64, 3), 255, dtype=np.uint8)
    styles = [
        [paint(pairs.pictures[at[style, name]], (255, 255, 255)) if (style, name) in at else white for name in names]
        for style in STYLES
    ]
    grid(styles).save(HERE / "contact_sheet.webp", quality=90, method=6)

    busy = EmojiPairs(EmojiData(scenes=0.4, backgrounds=0.6, first_language=0.5), "train")
    shown = [busy.pair(index, seed=2) for index in range(31, len(busy), len(busy) // COMPOSED)][:COMPOSED]
    half = COMPOSED // 2
    grid([[pair.image for pair in shown[:half]], [pair.image for pair in shown[half:]]]).save(
        HERE / "composed.webp", quality=90, method=6
    )
    for number, pair in enumerate(shown, 1):
        print(f"{number}. {pair.caption}")


if __name__ == "__main__":
    main()
