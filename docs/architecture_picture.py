"""Write docs/architecture.svg, what flows in training and in sampling: python docs/architecture_picture.py [--print]"""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path

_WIDTH, _HEIGHT = 1090, 418
_BOX = 164  # width of a box
# name, file, left, top, height, color
_BOXES = (
    ("text tokenizer", "text_tokenizers/", 110, 52, 54, "#e8f0fe"),
    ("image tokenizer", "image_tokenizers/: encode", 110, 132, 54, "#e6f4ea"),
    ("transformer", "models/dalle.py", 430, 52, 134, "#fef3e0"),
    ("loss, optimizer", "training/train_step.py", 690, 92, 54, "#f3e8fd"),
    ("text tokenizer", "text_tokenizers/", 110, 308, 54, "#e8f0fe"),
    ("sampling loop", "generation/generate.py", 430, 308, 54, "#fef3e0"),
    ("image tokenizer", "image_tokenizers/: decode", 690, 308, 54, "#e6f4ea"),
    ("CLIP", "generation/rerank.py", 915, 308, 54, "#fde7e9"),
)
# left, right and height of an arrow, and its label
_ARROWS = (
    (20, 110, 79, "caption"),
    (20, 110, 159, "image"),
    (274, 430, 79, "text tokens [B, T]"),
    (274, 430, 159, "image tokens [B, N]"),
    (594, 690, 119, "logits"),
    (20, 110, 335, "prompt"),
    (274, 430, 335, "text tokens"),
    (594, 690, 335, "image tokens"),
    (854, 915, 335, "images"),
)


def picture() -> str:
    """The SVG."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" role="img" '
        'aria-label="What flows in training and in sampling">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#5f6368"/></marker></defs>',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" rx="8" fill="#ffffff"/>',
        _text(20, 30, "Training", 15, weight="bold", anchor="start"),
        _text(20, 286, "Sampling", 15, weight="bold", anchor="start"),
        f'<path d="M20 218H{_WIDTH - 20}" stroke="#dadce0"/>',
        '<path d="M512 186V308" stroke="#5f6368" stroke-dasharray="4 4" fill="none" marker-end="url(#tip)"/>',
        _text(524, 246, "EMA weights, in a model folder with", 12, anchor="start"),
        _text(524, 262, "its tokenizers and its CLIP: checkpoints/", 12, anchor="start"),
        '<path d="M772 92C772 24 512 0 512 52" stroke="#5f6368" fill="none" marker-end="url(#tip)"/>',
        _text(790, 60, "train.py, step by step", 12, anchor="start"),
        '<path d="M997 308V262" stroke="#5f6368" marker-end="url(#tip)"/>',
        _text(997, 252, "the best of n", 12),
    ]
    for left, right, height, label in _ARROWS:
        parts.append(
            f'<path d="M{left} {height}H{right}" stroke="#5f6368" marker-end="url(#tip)"/>'
            + _text((left + right) / 2 - 4, height - 8, label, 12)
        )
    for name, file, left, top, tall, color in _BOXES:
        center, middle = left + _BOX / 2, top + tall / 2
        parts.append(
            f'<rect x="{left}" y="{top}" width="{_BOX}" height="{tall}" rx="6" fill="{color}" stroke="#9aa0a6"/>'
            + _text(center, middle - 4, name, 14, weight="bold")
            + _text(center, middle + 15, file, 11.5, color="#5f6368")
        )
    parts.append(_text(512, 388, "a token at a time, with a KV cache", 12))
    parts.append(_text(512, 404, "decoders: plain, fused CPU step, CUDA graph, Jacobi", 12))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _text(
    x: float, y: float, text: str, size: float, weight: str = "normal", anchor: str = "middle", color: str = "#202124"
) -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" fill="{color}">'
        f"{escape(text)}</text>"
    )


if __name__ == "__main__":
    if sys.argv[1:] == ["--print"]:
        print(picture(), end="")
    else:
        (Path(__file__).parent / "architecture.svg").write_text(picture(), encoding="utf-8")
