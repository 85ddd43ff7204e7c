"""The architecture of a CLIP, or of a SigLIP, as a config."""

from __future__ import annotations

from typing import Annotated, Literal

from dalle.config import check_total, config
from dalle.config.ranges import NonNegativeInt, PositiveFloat, Range, Size
from dalle.models.transformer_config import TransformerConfig
from dalle.text_tokenizers import EOS_ID

_Mean = Annotated[float, Range(-1000, 1000)]
_Deviation = Annotated[float, Range(0, 1000, above=True)]


@config
class ResNetConfig:
    """Architecture of a convolutional image tower (CLIP paper, section 2.4)."""

    layers: tuple[Size, Size, Size, Size] = (3, 4, 6, 3)
    """Blocks of the four stages."""
    width: Annotated[int, Range(16, ceiling=4096)] = 64
    """Channels of the stem; the last block has 32 times as many."""

    def __post_init__(self) -> None:
        if self.width % 2:
            raise ValueError(f"width is {self.width}; it must be even, as the stem begins with half of it")


@config
class CLIPConfig:
    """Architecture of a CLIP."""

    image_size: Size = 64
    """Height and width of the images, in pixels."""
    patch_size: Size = 8
    """Height and width of a patch, in pixels; divides image_size."""
    vision: TransformerConfig = TransformerConfig()
    """Image tower."""
    text: TransformerConfig = TransformerConfig()
    """Text tower."""
    text_vocab: Size = 4096
    """Number of text tokens in the vocabulary."""
    text_length: Size = 32
    """Longest caption in tokens, EOS included."""
    eos_id: NonNegativeInt = EOS_ID
    """Id of the EOS token, at which a caption's embedding is read."""
    embed_dim: Size = 256
    """Dimensions D of the joint embedding space."""
    # Mean and deviation of OpenAI's training images, which most published CLIPs keep
    mean: tuple[_Mean, _Mean, _Mean] = (0.48145466, 0.4578275, 0.40821073)
    """Mean of the red, green and blue channels, subtracted from images in [0, 1]."""
    std: tuple[_Deviation, _Deviation, _Deviation] = (0.26862954, 0.26130258, 0.27577711)
    """Standard deviation of the channels, by which images are then divided."""
    towers: Literal["clip", "siglip", "xlm_roberta"] = "clip"
    """clip: class token; causal text, read at EOS. siglip: attention pooling over the patches (embed_dim must equal the
    image tower's width); bidirectional text that attends to padding too, read at its last position. xlm_roberta: image
    tower of clip; multilingual bidirectional text, averaged (for published weights)."""
    resnet: ResNetConfig | None = None
    """Image tower of convolutions in place of `vision` (for published weights); patch_size must be 32."""
    missing: Literal["image", "text"] | None = None
    """Tower that is not there: a published part of an unCLIP may embed captions only, or images only."""
    sigmoid: bool = False
    """Give each pair its own probability, sigmoid(scale * cosine + bias), as SigLIP does (train with `loss: sigmoid`).
    false: no bias; scores only rank texts or images against each other."""
    initial_scale: PositiveFloat | None = None
    """Initial value of the logit scale; null: 1 / 0.07, or 10 with the sigmoid."""
    initial_bias: Annotated[float, Range(-(10**6), 10**6)] | None = None
    """Initial value of the sigmoid's bias; null: -10. The paper also tried log(1 / batch size)."""

    def __post_init__(self) -> None:
        tokens = self.text_length + (self.image_size // self.patch_size) ** 2
        # Embeddings, projections, patches and one mask; the towers' transformers check their own sizes
        widest = max(self.vision.width, self.text.width)
        numbers = (self.text_vocab + tokens + self.embed_dim + self.patch_size**2) * widest + self.text_length**2
        check_total(
            max(numbers, self.image_size**2),
            f"image_size {self.image_size}, patch_size {self.patch_size}, text_vocab {self.text_vocab}, "
            f"text_length {self.text_length}, embed_dim {self.embed_dim}",
        )
        if self.image_size % self.patch_size:
            raise ValueError(f"patch_size is {self.patch_size}; it must divide image_size, {self.image_size}")
        if self.towers == "siglip" and self.embed_dim != self.vision.width:
            raise ValueError(
                f"embed_dim is {self.embed_dim}; SigLIP towers have no image projection, so it must be the image "
                f"tower's width, {self.vision.width}"
            )
        # A ResNet has no patches: 32 is its total stride, which `image_size` must be a multiple of
        if self.resnet is not None and (self.patch_size != 32 or self.towers == "siglip"):
            raise ValueError(
                f"patch_size is {self.patch_size} and towers {self.towers}; with resnet they must be 32 and another"
            )
        if self.initial_bias is not None and not self.sigmoid:
            raise ValueError(f"initial_bias is {self.initial_bias}, but only the sigmoid has a bias: set it to null")

    @property
    def depths(self) -> dict[str, int]:
        """Number of blocks of the image and of the text tower."""
        # A ResNet's blocks count as its depth
        return {"image": self.vision.depth if self.resnet is None else sum(self.resnet.layers), "text": self.text.depth}
