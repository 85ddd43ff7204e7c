"""Options of policy optimization: a DALL-E trained on the images that it draws itself."""

from __future__ import annotations

from typing import Annotated

from dalle.config import config
from dalle.config.ranges import Range, Weight

NOT_SHARDED = "grpo draws images in each step, which a sharded model cannot: set run.sharding=none"


@config
class GRPOConfig:
    """Group relative policy optimization (GRPO; Shao et al. 2024, arXiv 2402.03300)."""

    candidates: Annotated[int, Range(2, ceiling=2**16)] = 8
    """Images drawn for each caption; each is rewarded for how much better it is than the others of its caption."""
    text: Weight = 1.0
    """Weight of CLIP's similarity of an image and its caption in the reward."""
    image: Weight = 0.5
    """Weight of CLIP's similarity of an image and the image that the caption belongs to, as the image tokenizer
    reconstructs it."""
    pixels: Weight = 1.0
    """Weight of minus the distance of the two (RMSE in [0, 1], at 16x16 pixels)."""
    supervised: Weight = 0.1
    """Weight of the usual loss on the training images beside it, which keeps what was learned; 0 is faster, and then
    dropout of captions and pieces, and noise on codes, have no effect."""

    def __post_init__(self) -> None:
        if not (self.text or self.image or self.pixels):
            raise ValueError("text, image and pixels are all 0: nothing would be rewarded; set one above 0")

    @property
    def needs_clip(self) -> bool:
        """Whether a CLIP takes part in the reward."""
        return bool(self.text or self.image)
