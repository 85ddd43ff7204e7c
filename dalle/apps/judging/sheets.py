"""Sheets of drawings: beside the real image and its reconstruction, and beside the nearest training image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from dalle.apps.judging.copies import Neighbors
from dalle.images.grid import labeled_grid
from dalle.images.png import write_png

_ROWS = 24  # prompts that a sheet shows, the first ones


def write_sheet(file: Path, prompts: Sequence[str], columns: Mapping[str, Tensor]) -> None:
    """A row for each prompt, with one image [N, 3, H, W] of each column."""
    rows = [
        (prompt, [pil_image(images[row]) for images in columns.values()], list(columns))
        for row, prompt in enumerate(prompts[:_ROWS])
    ]
    write_png(_beside(rows, 2), file, {})


def write_neighbors(
    file: Path, prompts: Sequence[str], images: Tensor, near: Tensor, captions: Sequence[str], found: Neighbors
) -> None:
    """Each drawing beside its nearest training image, the most alike first."""
    order = found.errors.argsort()[:_ROWS].tolist()
    rows = [
        (
            f"{prompts[row]} | {captions[row]}",
            [pil_image(images[row]), pil_image(near[row])],
            ["drawn", f"RMSE {found.errors[row]:.0f}"],
        )
        for row in order
    ]
    write_png(_beside(rows, 4), file, {})


def write_images(folder: Path, images: Tensor) -> None:
    """Each of [N, 3, H, W] as a PNG in a folder, for tools that compare folders (torch-fidelity)."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        write_png(pil_image(image), folder / f"{number:04d}.png", {})


def _beside(rows: Sequence[tuple[str, Sequence[Image.Image], Sequence[str]]], parts: int) -> Image.Image:
    """A grid of rows in several parts, the first rows at the left."""
    count = -(-len(rows) // parts)
    grids = [labeled_grid(rows[first : first + count]) for first in range(0, len(rows), count)]
    sheet = Image.new("RGB", (sum(grid.width for grid in grids), max(grid.height for grid in grids)), "white")
    left = 0
    for grid in grids:
        sheet.paste(grid, (left, 0))
        left += grid.width
    return sheet


def pil_image(image: Tensor) -> Image.Image:
    """[3, H, W] in [0, 1] as an image."""
    return Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())
