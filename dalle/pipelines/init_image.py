"""A given image to complete or to edit: its codes, which of them are known, and which of its pixels stay.

Shapes: H W pixels, h w codes of an image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dalle.image_tokenizers import ImageTokenizer
from dalle.images.transforms import check_mask, inpaint_pixels, square_tensor


@dataclass(frozen=True)
class InitImage:
    """A given image as candidates start from it: what they keep, and what they generate anew."""

    codes: Tensor  # int64 [h, w], or [K, h, w] for each of K candidates
    known_mask: Tensor  # bool [h, w], on the CPU: codes that are kept, not sampled
    image: Tensor | None = None  # [3, H, W] in [0, 1], whose pixels are pasted back
    inpaint_mask: Tensor | None = None  # bool [H, W]: pixels that are generated; None: nothing is pasted back

    def paste(self, decoded: Tensor) -> Tensor:
        """Put the pixels of the given image back into a decoded one [3, H, W], where the mask keeps them.

        A code covers several pixels, and the tokenizer loses detail: without this, what a mask keeps would change.
        """
        if self.inpaint_mask is None or self.image is None:
            return decoded
        return torch.where(self.inpaint_mask.to(decoded.device), decoded, self.image.to(decoded.device))


def encode_init_image(
    tokenizer: ImageTokenizer, image: Image.Image | None, keep_rows: float | None, mask: Image.Image | None
) -> InitImage | None:
    """Encode what candidates keep of `image`, given as for a call of `TextToImage`; None without an image.

    Raises:
        ValueError: the three do not go together.
    """
    if image is None:
        if keep_rows is not None or mask is not None:
            raise ValueError(f"{'mask' if keep_rows is None else 'keep_rows'} needs an image to keep something of")
        return None
    if (keep_rows is None) == (mask is None):
        raise ValueError("image needs either keep_rows or mask, to say what is kept of it")
    rows, columns = tokenizer.grid
    known_mask = torch.zeros(rows, columns, dtype=torch.bool)
    inpaint_mask = None
    if keep_rows is not None:
        known_mask[: whole_rows(keep_rows, rows)] = True
    else:
        assert mask is not None
        check_mask(mask, image)
        inpaint_mask = inpaint_pixels(mask, tokenizer.image_size)
        # A code is kept only if none of its pixels is to be generated
        known_mask = F.adaptive_max_pool2d(inpaint_mask[None].float(), (rows, columns))[0] == 0
    pixels = square_tensor(image, tokenizer.image_size).to(tokenizer.last_layer.device)
    return InitImage(tokenizer.encode(pixels[None])[0], known_mask, pixels, inpaint_mask)


def whole_rows(keep_rows: float, rows: int) -> int:
    """`keep_rows` of a grid with `rows` rows as a whole number: below 1 a fraction, rounded; else the number itself.

    Raises:
        ValueError: it is not a whole number, or leaves nothing to keep or nothing to draw.
    """
    count = 0
    if 0 < keep_rows < rows:
        count = round(keep_rows * rows) if keep_rows < 1 else int(keep_rows)
    if not 1 <= count < rows or (keep_rows >= 1 and keep_rows != count):
        raise ValueError(
            f"keep_rows is {keep_rows:g}: give a fraction from {1 / rows:g} to {1 - 1 / rows:g}, "
            f"or a whole number of rows from 1 to {rows - 1}"
        )
    return count
