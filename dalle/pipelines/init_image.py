"""An image to complete or edit: its codes, which of them are known, and which of its pixels stay.

Shapes: H W pixels, h w codes of an image.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dalle.image_tokenizers import ImageTokenizer
from dalle.images.size import Size
from dalle.images.transforms import centered_tensor, check_mask, inpaint_pixels


@dataclass(frozen=True)
class InitImage:
    """An encoded image, and which part of it candidates keep.

    Attributes:
        codes: int64 [h, w], or [K, h, w] for each of K candidates.
        known_mask: bool [h, w] on the CPU, True for codes that are kept and not sampled.
        image: float [3, H, W] in [0, 1], whose pixels are pasted back.
        inpaint_mask: bool [H, W], True for pixels that are generated; None: nothing is pasted back.
    """

    codes: Tensor
    known_mask: Tensor
    image: Tensor | None = None
    inpaint_mask: Tensor | None = None

    def paste(self, decoded: Tensor) -> Tensor:
        """Put the kept pixels of the original image back into a decoded one, [3, H, W].

        A code covers several pixels, and the tokenizer loses detail: without this, what a mask keeps would change.
        """
        if self.inpaint_mask is None or self.image is None:
            return decoded
        return torch.where(self.inpaint_mask.to(decoded.device), decoded, self.image.to(decoded.device))


def encode_init_image(
    tokenizer: ImageTokenizer,
    size: Size,
    image: Image.Image | None,
    keep_rows: float | None,
    mask: Image.Image | None,
) -> InitImage | None:
    """Encode an image to complete or edit, with the arguments of `TextToImage.__call__`; None without an image.

    Args:
        tokenizer: the image tokenizer.
        size: width and height of the images that are drawn, in pixels.
        image: the image; its center is cropped and resized to that size.
        keep_rows: rows of codes to keep.
        mask: white where new content is generated.

    Raises:
        ValueError: the arguments contradict each other.
    """
    if image is None:
        if keep_rows is not None or mask is not None:
            raise ValueError(f"{'mask' if keep_rows is None else 'keep_rows'} needs an image to keep something of")
        return None
    if (keep_rows is None) == (mask is None):
        raise ValueError("image needs either keep_rows or mask, to say what is kept of it")
    (width, height), cell = size, tokenizer.factor
    rows, columns = height // cell, width // cell
    known_mask = torch.zeros(rows, columns, dtype=torch.bool)
    inpaint_mask = None
    if keep_rows is not None:
        known_mask[: whole_rows(keep_rows, rows)] = True
    else:
        assert mask is not None
        check_mask(mask, image)
        inpaint_mask = inpaint_pixels(mask, width, height)
        # A code is kept only if none of its pixels is to be generated
        known_mask = F.adaptive_max_pool2d(inpaint_mask[None].float(), (rows, columns))[0] == 0
    # Encoded once for all candidates of all prompts
    pixels = centered_tensor(image, width, height).to(tokenizer.last_layer.device)
    return InitImage(tokenizer.encode(pixels[None])[0], known_mask, pixels, inpaint_mask)


def whole_rows(keep_rows: float, rows: int) -> int:
    """Convert `keep_rows` to a number of rows of a grid with `rows` rows; below 1 it is a fraction, rounded.

    Raises:
        ValueError: it is not a whole number, or leaves nothing to keep or nothing to generate.
    """
    if isinstance(keep_rows, bool) or not isinstance(keep_rows, Real):
        raise ValueError(f"keep_rows is {keep_rows!r}: give a number of rows, or a fraction of them")
    count = 0
    if 0 < keep_rows < rows:
        # 1 is one row and not all of them: to keep everything would leave nothing to generate
        count = round(keep_rows * rows) if keep_rows < 1 else int(keep_rows)
    if not 1 <= count < rows or (keep_rows >= 1 and keep_rows != count):
        raise ValueError(
            f"keep_rows is {keep_rows:g}: give a fraction from {1 / rows:g} to {1 - 1 / rows:g}, "
            f"or a whole number of rows from 1 to {rows - 1}"
        )
    return count
