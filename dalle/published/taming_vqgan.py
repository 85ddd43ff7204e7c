"""VQGANs of taming-transformers (arXiv 2012.09841): Lightning checkpoints, nearest codes or the Gumbel quantizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dalle.config import read_yaml
from dalle.image import GumbelConfig, VQConfig, VQGANConfig
from dalle.published.pickles import read_pickled
from dalle.published.state import Published, count, renamed, shape, state_of

FAMILY = "a VQGAN of taming-transformers"
_IMAGE_SIZE = 256  # where no model.yaml says otherwise
_TARGETS = ("taming.models.vqgan.VQModel", "taming.models.vqgan.GumbelVQ")
_MIDDLE = {"block_1": "0", "attn_1": "1", "block_2": "2"}
_SAME = r"((?:encoder|decoder)\.(?:conv_in|conv_out|norm_out|down\.\d+\.(?:block|attn)|up\.\d+\.(?:block|attn))\..+)"
_RULES = (
    (_SAME, r"\1"),
    (r"(encoder\.down|decoder\.up)\.(\d+)\.(?:down|up)sample\.(.+)", r"\1.\2.resample.\3"),
    *((rf"(encoder|decoder)\.mid\.{theirs}\.(.+)", rf"\1.mid.{ours}.\2") for theirs, ours in _MIDDLE.items()),
    (r"((?:post_)?quant_conv\..+)", r"\1"),
    (r"quantize\.embedding\.weight", r"quantize.codebook"),
    (r"(quantize\.(?:proj|embed)\..+)", r"\1"),
)
_DROPPED = r"loss\..*"  # discriminator and LPIPS of the training, the bulk of the file


def files(source: Path) -> tuple[Path | None, Path | None]:
    """Checkpoint and model.yaml of a file or a folder; None where there is none."""
    if source.is_file():
        found = [source] if source.suffix in (".ckpt", ".pt", ".pth", ".bin") else []
        yamls = sorted(source.parent.glob("*.yaml"))
    else:
        found = sorted(source.rglob("*.ckpt"))
        yamls = sorted(path for path in source.rglob("*.yaml") if path.name != "config.yaml")
    return (found[0] if len(found) == 1 else None), (yamls[0] if len(yamls) == 1 else None)


def is_there(source: Path) -> bool:
    """Whether there is one checkpoint."""
    return files(source)[0] is not None


def read(source: Path) -> Published:
    """The VQGAN in a .ckpt file, or in a folder with one and perhaps its model.yaml.

    Raises:
        ValueError: a file is damaged, or of something else.
    """
    checkpoint, options = files(source)
    assert checkpoint is not None
    tensors, dropped = renamed(state_of(read_pickled(checkpoint)), _RULES, _DROPPED)
    config = _config(tensors, _IMAGE_SIZE if options is None else _resolution(options))
    if isinstance(config.quantizer, VQConfig):  # our own counters, which start anew
        tensors["quantize.age"] = torch.zeros(config.quantizer.codebook_size, dtype=torch.int64)
        tensors["quantize.updates"] = torch.zeros((), dtype=torch.int64)
    return Published(FAMILY, config, tensors, dropped)


def _config(tensors: dict[str, Tensor], image_size: int) -> VQGANConfig:
    """What the shapes say: all but the size of the pictures."""
    channels = shape(tensors, "encoder.conv_in.weight")[0]
    levels = count(tensors, r"encoder\.down\.(\d+)")
    widths = [shape(tensors, f"encoder.down.{level}.block.0.conv1.weight")[0] for level in range(levels)]
    attended = [level for level in range(levels) if f"encoder.down.{level}.attn.0.norm.weight" in tensors]
    quantizer: VQConfig | GumbelConfig
    if "quantize.codebook" in tensors:
        codes, width = shape(tensors, "quantize.codebook")
        quantizer = VQConfig(codebook_size=codes, code_channels=width, distance="euclidean", update="gradient")
    else:
        codes, width = shape(tensors, "quantize.embed.weight")
        quantizer = GumbelConfig(codebook_size=codes, code_channels=width)
    return VQGANConfig(
        image_size=image_size,
        channels=channels,
        channel_multipliers=[width // channels for width in widths],
        blocks=count(tensors, r"encoder\.down\.\d+\.block\.(\d+)"),
        attention_resolutions=[image_size // 2**level for level in attended],
        latent_channels=shape(tensors, "encoder.conv_out.weight")[0],
        quantizer=quantizer,
    )


def _resolution(options: Path) -> int:
    """`resolution` of a model.yaml, whose `target` is compared with a table and never imported."""
    model: Any = read_yaml(options).get("model")
    target = model.get("target") if isinstance(model, dict) else None
    if target not in _TARGETS:
        raise ValueError(f"{options} says target: {target}, expected {' or '.join(_TARGETS)}")
    try:
        return int(model["params"]["ddconfig"]["resolution"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{options} has no whole number model.params.ddconfig.resolution") from error
