"""The discrete VAE of DALLE-pytorch: separate .pt files, or the `vae.` tensors of a DALL-E checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dalle.checkpoints.published.state import Published, count, shape
from dalle.checkpoints.published.stored_state import strip_wrappers
from dalle.image_tokenizers import DiscreteVAEConfig

FAMILY = "a DiscreteVAE of DALLE-pytorch"
LICENSE = "that of whoever trained it (the code: MIT, github.com/lucidrains/DALLE-pytorch)"
_IMAGE_SIZE = 256  # pixels, their code's default
_UNSPECIFIED = object()


def is_of(tree: Any) -> bool:
    """Whether the content of a checkpoint is of this family."""
    if not isinstance(tree, dict) or not {"hparams", "weights"} <= set(tree) or "vae_params" in tree:
        return False
    return isinstance(tree["weights"], dict) and "codebook.weight" in strip_wrappers(tree["weights"])


def read(options: Any, tensors: Mapping[str, Tensor]) -> Published:
    """Convert a discrete VAE.

    Args:
        options: its hyperparameters, of which only image size and normalization are not evident from the tensors.
        tensors: by their published names, which are ours too.

    Raises:
        ValueError: they are of something else, or an option is not supported.
    """
    options = options if isinstance(options, dict) else {}
    # Where hparams do not say, the default of its class applied, 0.5; None: images were not normalized
    normalization = options.get("normalization", _UNSPECIFIED)
    if normalization not in (_UNSPECIFIED, None) and not _is_half(normalization):
        raise ValueError(
            f"its image normalization is {normalization!r:.100}: only mean and standard deviation 0.5 are supported"
        )
    size = options.get("image_size", _IMAGE_SIZE)
    if type(size) is not int:
        raise ValueError(f"its image_size is {size!r:.60}, expected an integer: give a complete checkpoint")
    codes, width = shape(tensors, "codebook.weight", 2)
    last = count(tensors, r"encoder\.(\d+)\.weight") - 1  # the last one makes the logits
    config = DiscreteVAEConfig(
        image_size=size,
        codebook_size=codes,
        code_channels=width,
        layers=count(tensors, r"encoder\.(\d+)\.0\.weight"),
        # Plain convolutions have no `net`
        blocks=sum(f"encoder.{layer}.net.0.weight" in tensors for layer in range(last)),
        hidden=shape(tensors, "encoder.0.0.weight", 4)[0],
        normalized=normalization is not None,
    )
    return Published(FAMILY, LICENSE, config, dict(tensors), [])


def _is_half(normalization: Any) -> bool:
    """Whether means and standard deviations of three channels are all 0.5; newer versions store a fourth channel."""
    try:
        return all(value == 0.5 for part in normalization for value in list(part)[:3]) and len(normalization) == 2
    except TypeError:
        return False
