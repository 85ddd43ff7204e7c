"""The discrete VAE of DALLE-pytorch: .pt files of its own, or the `vae.` part of a DALL-E's file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dalle.checkpoints.published.state import Published, count, shape, unwrapped
from dalle.image_tokenizers import DiscreteVAEConfig

FAMILY = "a DiscreteVAE of DALLE-pytorch"
LICENCE = "that of whoever trained it (the code: MIT, github.com/lucidrains/DALLE-pytorch)"
_IMAGE_SIZE = 256  # where nothing else is said, as their code has it
_UNTOLD = object()


def is_of(tree: Any) -> bool:
    """Whether what a checkpoint holds is of this family."""
    if not isinstance(tree, dict) or not {"hparams", "weights"} <= set(tree) or "vae_params" in tree:
        return False
    return isinstance(tree["weights"], dict) and "codebook.weight" in unwrapped(tree["weights"])


def read(options: Any, tensors: Mapping[str, Tensor]) -> Published:
    """A discrete VAE.

    Args:
        options: what it was built with; only the size of its images and their normalisation are in no shape.
        tensors: under their published names, which are ours.

    Raises:
        ValueError: they are of something else.
    """
    options = options if isinstance(options, dict) else {}
    normalisation = options.get("normalization", _UNTOLD)
    if normalisation not in (_UNTOLD, None) and not _is_half(normalisation):
        raise ValueError(
            f"its pixels are normalised by {normalisation!r:.100}; only means and deviations of 0.5 are supported"
        )
    size = options.get("image_size", _IMAGE_SIZE)
    if type(size) is not int:
        raise ValueError(f"its image_size is {size!r:.60}, expected a whole number")
    codes, width = shape(tensors, "codebook.weight", 2)
    last = count(tensors, r"encoder\.(\d+)\.weight") - 1
    config = DiscreteVAEConfig(
        image_size=size,
        codebook_size=codes,
        code_channels=width,
        layers=count(tensors, r"encoder\.(\d+)\.0\.weight"),
        blocks=sum(f"encoder.{layer}.net.0.weight" in tensors for layer in range(last)),
        hidden=shape(tensors, "encoder.0.0.weight", 4)[0],
        normalised=normalisation is not None,
    )
    return Published(FAMILY, LICENCE, config, dict(tensors), [])


def _is_half(normalisation: Any) -> bool:
    """Whether means and standard deviations of three colours are all 0.5; newer versions write a fourth beside them."""
    try:
        return all(value == 0.5 for part in normalisation for value in list(part)[:3]) and len(normalisation) == 2
    except TypeError:
        return False
