"""What the codes of an image tokenizer are, so that those of another with as many codes are not taken for them."""

from __future__ import annotations

import math

from dalle.config import config
from dalle.config.ranges import NonNegativeInt
from dalle.image_tokenizers.cosmos import CosmosConfig
from dalle.image_tokenizers.dalle_pytorch_vae import DiscreteVAEConfig
from dalle.image_tokenizers.dvae import DVAEConfig
from dalle.image_tokenizers.emu3 import Emu3VQConfig
from dalle.image_tokenizers.movqgan import MoVQGANConfig
from dalle.image_tokenizers.quantize import FSQConfig, GumbelConfig
from dalle.image_tokenizers.vq import VQConfig
from dalle.image_tokenizers.vqgan import VQGANConfig

_AnyConfig = DVAEConfig | VQGANConfig | DiscreteVAEConfig | Emu3VQConfig | CosmosConfig | MoVQGANConfig
_NAMES = {
    ("vqgan", "cosine"): "a VQGAN with normalized codes (Janus, LlamaGen)",
    ("vqgan", "euclidean"): "a VQGAN (taming-transformers, Chameleon)",
    ("vqgan", "dot"): "an IBQ (Emu3.5)",
    ("vqgan", "gumbel"): "a VQGAN with Gumbel-softmax (ruDALL-E)",
    ("vqgan", "fsq"): "a VQGAN with FSQ",
    ("vqgan", ""): "a VQGAN",
    ("emu3", "euclidean"): "Emu3's image tokenizer",
    ("movqgan", "euclidean"): "a MoVQGAN",
    ("cosmos", "fsq"): "Cosmos' image tokenizer",
    ("dvae", "gumbel"): "a dVAE (OpenAI)",
    ("discrete_vae", "gumbel"): "a DiscreteVAE (DALLE-pytorch)",
}


@config
class ImageCodes:
    """The codes of an image tokenizer; what is empty or 0 is not known."""

    network: str = ""
    """`kind` of its config."""
    quantizer: str = ""
    """How latents become codes: euclidean, cosine or dot (the distance), gumbel or fsq."""
    codes: NonNegativeInt = 0
    """Number of codes."""
    channels: NonNegativeInt = 0
    """Channels of a code's vector."""
    factor: NonNegativeInt = 0
    """Pixels of the side of a code's cell; of a VQGAN those of the network behind its patches."""
    source: str = ""
    """Where the image tokenizer is published: a hub id."""

    def __str__(self) -> str:
        size = f" with {self.codes:,} codes" if self.codes else ""
        size += f" of {self.channels} channels" if self.codes and self.channels else ""
        size += f" for {self.factor}x{self.factor} pixels each" if self.codes and self.factor else ""
        return _NAMES.get((self.network, self.quantizer), self.network) + size


def codes_of(shape: _AnyConfig) -> ImageCodes:
    """What the codes of an image tokenizer of a config are."""
    if isinstance(shape, VQGANConfig):
        return _of_quantizer(shape.kind, shape.quantizer, shape.factor // shape.patch)
    if isinstance(shape, CosmosConfig):
        return _of_quantizer(shape.kind, shape.networks().quantizer, shape.networks().factor)
    if isinstance(shape, Emu3VQConfig | MoVQGANConfig):
        return _of_quantizer(shape.kind, shape.quantizer(), shape.encoder().factor)
    factor = shape.factor if isinstance(shape, DVAEConfig) else 2**shape.layers
    relaxed = GumbelConfig(codebook_size=shape.codebook_size, code_channels=shape.code_channels)
    return _of_quantizer(shape.kind, relaxed, factor)


def _of_quantizer(network: str, how: VQConfig | GumbelConfig | FSQConfig, factor: int) -> ImageCodes:
    if isinstance(how, FSQConfig):
        name, codes, channels = "fsq", math.prod(how.levels), len(how.levels)
    else:
        codes, channels = how.codebook_size, how.code_channels
        name = how.distance if isinstance(how, VQConfig) else "gumbel"
    return ImageCodes(network=network, quantizer=name, codes=codes, channels=channels, factor=factor)


def check_codes(wanted: ImageCodes | None, shape: _AnyConfig, source: str) -> None:
    """Check that an image tokenizer has the codes that a model draws.

    Its number of codes alone is not compared here: a model knows its own. Vectors and cells are, if as many codes are
    wanted as it has: smaller models of a family may have others.

    Args:
        wanted: what the model draws; None: it is not known.
        shape: config of the image tokenizer.
        source: where it is from, for the message.

    Raises:
        ValueError: they are of another kind.
    """
    if wanted is None:
        return
    found = codes_of(shape)
    same = wanted.network in ("", found.network) and wanted.quantizer in ("", found.quantizer)
    if same and found.codes == wanted.codes:
        same = wanted.channels in (0, found.channels) and wanted.factor in (0, found.factor)
    if not same:
        other = f", such as {wanted.source}" if wanted.source else ""
        raise ValueError(
            f"{source} is {found}, and this model draws the codes of another image tokenizer, {wanted}: give "
            f"that{other}"
        )
