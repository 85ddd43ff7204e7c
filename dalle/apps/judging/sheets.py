"""Contact sheets: samples beside real images and reconstructions, and beside the nearest training images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from dalle.apps.judging.memorization import Neighbors
from dalle.images.grid import labeled_columns
from dalle.images.png import write_png

_MAX_ROWS = 24


def write_sheet(file: Path, prompts: Sequence[str], columns: Mapping[str, Tensor]) -> None:
    """Write a row for each of the first 24 prompts, with one image of each column [N, 3, H, W]."""
    rows = [
        (prompt, [pil_image(images[row]) for images in columns.values()], list(columns))
        for row, prompt in enumerate(prompts[:_MAX_ROWS])
    ]
    write_png(labeled_columns(rows), file, {})


def write_neighbors(
    file: Path, prompts: Sequence[str], images: Tensor, nearest: Tensor, captions: Sequence[str], neighbors: Neighbors
) -> None:
    """Write the 24 samples that are nearest to a training image, each beside it.

    Args:
        file: PNG to write.
        prompts: N of them.
        images: samples [N, 3, H, W].
        nearest: their nearest training images [N, 3, H, W].
        captions: of the training images.
        neighbors: the errors.
    """
    order = neighbors.errors.argsort()[:_MAX_ROWS].tolist()
    rows = [
        (
            f"{prompts[row]} | {captions[row]}",
            [pil_image(images[row]), pil_image(nearest[row])],
            ["drawn", f"RMSE {neighbors.errors[row]:.0f}"],
        )
        for row in order
    ]
    write_png(labeled_columns(rows, 4), file, {})


def write_images(folder: Path, images: Tensor) -> None:
    """Write each of [N, 3, H, W] as a PNG, for tools that compare folders (torch-fidelity)."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        write_png(pil_image(image), folder / f"{number:04d}.png", {})


def pil_image(image: Tensor) -> Image.Image:
    """Float [3, H, W] in [0, 1] to an RGB image."""
    return Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())
