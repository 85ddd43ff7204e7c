"""VQGANs of taming-transformers (arXiv 2012.09841) and LlamaGen (arXiv 2406.06525): one network, two naming schemes.

taming: Lightning checkpoints with a model.yaml; a 256-channel VQ codebook, or the Gumbel quantizer. LlamaGen: an
8-channel codebook with l2-normalized codes and latents; its decoder numbers levels from the coarsest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from dalle.checkpoints.published.state import Published, count, quantizer_statistics, rename_tensors, shape
from dalle.image_tokenizers import GumbelConfig, VQConfig, VQGANConfig

_FAMILIES = {
    False: ("a VQGAN of taming-transformers", "MIT (github.com/CompVis/taming-transformers, License.txt)"),
    True: ("a VQGAN of LlamaGen", "MIT (github.com/FoundationVision/LlamaGen, LICENSE)"),
}
_MAX_CODES = 2**16
_TARGETS = ("taming.models.vqgan.VQModel", "taming.models.vqgan.GumbelVQ")
_ENDS = (
    (r"((?:encoder|decoder)\.(?:conv_in|conv_out|norm_out)\..+)", r"\1"),
    (r"((?:post_)?quant_conv\..+)", r"\1"),
    (r"quantize\.embedding\.weight", r"quantize.codebook"),
)
_TAMING = (
    *_ENDS,
    (r"((?:encoder\.down|decoder\.up)\.\d+\.(?:block|attn)\..+)", r"\1"),
    (r"(encoder\.down|decoder\.up)\.(\d+)\.(?:down|up)sample\.(.+)", r"\1.\2.resample.\3"),
    *(
        (rf"(encoder|decoder)\.mid\.{theirs}\.(.+)", rf"\1.mid.{ours}.\2")
        for ours, theirs in enumerate(("block_1", "attn_1", "block_2"))
    ),
    (r"(quantize\.(?:proj|embed)\..+)", r"\1"),
)
_LLAMAGEN = (
    *_ENDS,
    (r"((?:encoder|decoder)\.mid\..+)", r"\1"),
    *(
        (rf"{side}\.conv_blocks\.(\d+)\.{theirs}\.(.+)", rf"{side}.{level}.\1.{ours}.\2")
        for side, level in (("encoder", "down"), ("decoder", "up"))
        for theirs, ours in (("res", "block"), ("attn", "attn"), ("(?:down|up)sample", "resample"))
    ),
)
# Discriminator and LPIPS, most of a taming checkpoint; LlamaGen's record of used codes.
_DROPPED = r"loss\..*|quantize\.codebook_used"


def resolution(options: dict[str, Any], where: str) -> int:
    """The `resolution` in taming's model.yaml, whose `target` class is compared with a table and never imported.

    Raises:
        ValueError: it is of another model, or has no resolution.
    """
    model = options.get("model")
    target = model.get("target") if isinstance(model, dict) else None
    # Chameleon's code reads the parameters alone, so that its copy of the class has whatever name
    chameleon = where.endswith("vqgan.yaml") and (target is None or str(target).endswith(".VQModel"))
    if target not in _TARGETS and not chameleon:
        raise ValueError(f"{where} says target: {target}, expected {' or '.join(_TARGETS)}")
    try:
        return int(options["model"]["params"]["ddconfig"]["resolution"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{where} has no integer model.params.ddconfig.resolution: give a complete model.yaml"
        ) from error


def read(tensors: dict[str, Tensor], image_size: int, options: Mapping[str, Any] | None = None) -> Published:
    """Convert the tensors of a checkpoint.

    Args:
        tensors: tensors by their published names.
        image_size: size of its training images in pixels, which the file does not record.
        options: training options, if the checkpoint stores them.

    Raises:
        ValueError: they are of something else.
    """
    if any(name.endswith("decoder.idwt.g0_col") for name in tensors):
        raise ValueError(
            "its decoder outputs wavelets (vqgan.gumbelf8-sber-dwt), which is not supported: give "
            "vqgan.gumbelf8-sber.model.ckpt, which has the same codebook"
        )
    llamagen = any(".conv_blocks." in name for name in tensors)
    ours, dropped = rename_tensors(tensors, _LLAMAGEN if llamagen else _TAMING, _DROPPED)
    if llamagen:
        last = count(ours, r"decoder\.up\.(\d+)\.") - 1
        # LlamaGen numbers the decoder's levels in the order in which they run; ours begin at the finest
        ours = {
            re.sub(r"(?<=^decoder\.up\.)\d+", lambda level: str(last - int(level[0])), name): tensor
            for name, tensor in ours.items()
        }
    if "quant_conv.weight" in ours and not any(name.startswith("quantize.") for name in ours):
        raise ValueError("it is a continuous autoencoder (of latent diffusion), which is not supported: give a VQGAN")
    # LlamaGen normalizes codes unless its training options say otherwise
    config = config_of(ours, image_size, normalized=llamagen and (options or {}).get("codebook_l2_norm", True))
    if isinstance(config.quantizer, VQConfig):
        ours.update(quantizer_statistics(config.quantizer.codebook_size))
    return Published(*_FAMILIES[llamagen], config, ours, dropped, _LLAMAGEN if llamagen else _TAMING)


def reject_ibq(found: Published) -> None:
    """Reject a checkpoint that may be an IBQ (arXiv 2412.02692), which only its sizes distinguish from taming's.

    IBQ picks codes by the largest dot product; by the nearest vector, three of four would silently be wrong. All its
    published models have four blocks per level; taming's have two, and at most 16,384 codes. That of Emu3.5 is told by
    its config.yaml or its 131,072 codes (`ibq`).

    Raises:
        ValueError: it has more blocks or codes than taming's.
    """
    config = found.config
    quantizer = config.quantizer
    if not isinstance(quantizer, VQConfig) or quantizer.distance != "euclidean":
        return
    if config.blocks >= 4 or quantizer.codebook_size > _MAX_CODES:
        raise ValueError(
            f"it has {config.blocks} blocks per level and {quantizer.codebook_size:,} codes, like an IBQ (SEED-Voken), "
            "which is not supported; if it is of taming-transformers, put its model.yaml beside it, if of Emu3.5 its "
            "config.yaml"
        )


def config_of(tensors: dict[str, Tensor], image_size: int, normalized: bool = False) -> VQGANConfig:
    """The architecture by tensor shapes.

    Args:
        tensors: tensors by our names.
        image_size: size of its training images in pixels.
        normalized: whether codes are compared by cosine similarity.

    Raises:
        ValueError: a tensor is missing.
    """
    channels = shape(tensors, "encoder.conv_in.weight", 4)[0]
    levels = count(tensors, r"encoder\.down\.(\d+)\.")
    widths = [shape(tensors, f"encoder.down.{level}.block.0.conv1.weight", 4)[0] for level in range(levels)]
    attended = [level for level in range(levels) if f"encoder.down.{level}.attn.0.norm.weight" in tensors]
    quantizer: VQConfig | GumbelConfig
    if "quantize.codebook" in tensors:
        codes, width = shape(tensors, "quantize.codebook", 2)
        distance: Literal["cosine", "euclidean"] = "cosine" if normalized else "euclidean"
        quantizer = VQConfig(codebook_size=codes, code_channels=width, distance=distance, update="gradient")
    else:
        codes, width = shape(tensors, "quantize.embed.weight", 2)
        quantizer = GumbelConfig(codebook_size=codes, code_channels=width)
    return VQGANConfig(
        image_size=image_size,
        channels=channels,
        channel_multipliers=[width // channels for width in widths],
        blocks=count(tensors, r"encoder\.down\.\d+\.block\.(\d+)"),
        attention_resolutions=[image_size // 2**level for level in attended],  # the side of a level's maps
        latent_channels=shape(tensors, "encoder.conv_out.weight", 4)[0],
        quantizer=quantizer,
    )
