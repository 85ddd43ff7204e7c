"""Images to tensors: crops and filters against slow ones, and what masks with transparency mean."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from dalle.images.read import square_image
from dalle.images.transforms import inpaint_pixels, square_tensor, to_image, to_mask, to_rgb, to_tensor


def strokes(left: int, right: int, color: int = 255) -> Image.Image:
    """White strokes in columns left to right of a transparent layer, under which everything is `color`."""
    layer = np.full((8, 8, 4), color, dtype=np.uint8)
    layer[..., 3] = 0
    layer[:, left:right] = 255
    return Image.fromarray(layer)


@pytest.mark.parametrize("color", [0, 255])
def test_transparent_parts_of_a_mask_are_not_painted(color: int) -> None:
    image = Image.new("RGB", (8, 8))
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[:, 2:5] = True
    assert torch.equal(inpaint_pixels(strokes(2, 5, color), 8), expected)
    assert torch.equal(to_mask(strokes(2, 5, color), image, 8, 8)[0, 0], expected.float())
    with pytest.raises(ValueError, match="no white pixel"):
        inpaint_pixels(strokes(0, 0, color), 8)


@pytest.mark.parametrize("size", [(8, 8), (40, 25), (25, 40), (31, 64)])
def test_given_images_are_cropped_and_resized_as_data_sets_are(size: tuple[int, int]) -> None:
    image = Image.effect_noise(size, 90).convert("RGB")
    file = io.BytesIO()
    image.save(file, "png")
    expected = square_image(file.getvalue(), 8)
    assert np.array_equal((square_tensor(image, 8) * 255).byte().permute(1, 2, 0).numpy(), expected)
    assert np.array_equal(np.asarray(to_image(to_tensor(image, 8, 8))), expected)


def test_center_crop_has_the_given_aspect_ratio() -> None:
    """Without resizing it is a plain slice."""
    image = Image.effect_noise((20, 10), 90).convert("RGB")
    got = to_tensor(image, 10, 10)[0].mul(255).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(got, np.asarray(image)[:, 5:15])
    got = to_tensor(image, 20, 6)[0].mul(255).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(got, np.asarray(image)[2:8])


def test_transparent_pixels_become_white() -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    image.putpixel((1, 0), (255, 0, 0, 128))
    assert [to_rgb(image).getpixel((x, 0)) for x in range(2)] == [(255, 255, 255), (255, 127, 127)]
