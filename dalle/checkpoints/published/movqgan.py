"""MoVQGANs of ai-forever (movqgan_67M.ckpt, _102M, _270M): taming's names, and a norm of two parts in the decoder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor

from dalle.checkpoints.published.emu3_tokenizer import autoencoder
from dalle.checkpoints.published.folding import Part, fold, plain, same
from dalle.checkpoints.published.state import Published, count, quantizer_statistics, shape
from dalle.image_tokenizers import MoVQGANConfig

FAMILY = "a MoVQGAN"
LICENSE = "Apache-2.0 (github.com/ai-forever/MoVQGAN)"
_SIZE = 256  # pixels of its training images
_DROPPED = ("loss.", "ema_", "model_ema.")  # discriminator and LPIPS, moving averages of the weights


def is_of(names: Iterable[str]) -> bool:
    """Whether tensors, by their published names, are of this family: a codebook, and a decoder that it modulates."""
    found = set(names)
    return {"decoder.norm_out.conv_y.weight", "quantize.embedding.weight", "quant_conv.weight"} <= found


def read(published: Mapping[str, Tensor]) -> Published:
    """Convert the tensors of a checkpoint, by names without wrappers.

    Raises:
        ValueError: they are of something else, or incomplete.
    """
    config = _config(published)
    tensors, rules, others = fold(published, _parts(config))
    dropped = [name for name in published if name.startswith(_DROPPED)]
    unknown = [name for name in others if name not in dropped]
    if unknown:
        raise ValueError(f"it has unknown tensor names: {', '.join(unknown[:3])}; it is no MoVQGAN of ai-forever")
    tensors.update(quantizer_statistics(config.codebook_size))
    return Published(FAMILY, LICENSE, config, tensors, dropped, rules)


def _config(published: Mapping[str, Tensor]) -> MoVQGANConfig:
    channels = shape(published, "encoder.conv_in.weight", 4)[0]
    levels = count(published, r"encoder\.down\.(\d+)\.")
    widths = [shape(published, f"encoder.down.{level}.block.0.conv1.weight", 4)[0] for level in range(levels)]
    codes, latents = shape(published, "quantize.embedding.weight", 2)
    if not levels or any(width % channels for width in widths):
        raise ValueError("its encoder has no levels, or of other channels than those of a MoVQGAN")
    attended = {level for level in range(levels) if f"encoder.down.{level}.attn.0.norm.weight" in published}
    if attended != {levels - 1}:
        raise ValueError(f"its levels {sorted(attended)} attend; a MoVQGAN's only the coarsest, {levels - 1}")
    return MoVQGANConfig(
        image_size=_SIZE,
        channels=channels,
        channel_multipliers=[width // channels for width in widths],
        blocks=count(published, r"encoder\.down\.\d+\.block\.(\d+)\."),
        latent_channels=latents,
        codebook_size=codes,
    )


def _parts(config: MoVQGANConfig) -> Iterator[Part]:
    yield "quantize.codebook", ["quantize.embedding.weight"], same
    yield from plain((name, name) for name in ("quant_conv", "post_quant_conv"))
    yield from autoencoder(config.encoder(), theirs=False)
