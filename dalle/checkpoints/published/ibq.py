"""IBQ (arXiv 2412.02692) as Emu3.5 has it: taming's network, whose codes are those of the largest dot product.

Its tensors have the names and shapes of a VQGAN of taming-transformers, which would take the nearest code, in most
cells another one. What tells them apart is the config.yaml beside it, which has no sections, or its 131,072 codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from dalle.checkpoints.published import vqgan
from dalle.checkpoints.published.state import Published
from dalle.config import read_yaml
from dalle.image_tokenizers import VQConfig

FAMILY = "the image tokenizer of Emu3.5 (IBQ)"
LICENSE = "Apache-2.0 (huggingface.co/BAAI/Emu3.5-VisionTokenizer)"
_SETTINGS, _WEIGHTS = "config.yaml", "model.ckpt"
_CODES = 131_072
_SIZE = 1024  # pixels of the images that Emu3.5 draws


def is_there(source: Path) -> bool:
    """Whether a source is such a tokenizer: a folder with its config.yaml, or a file beside it.

    Raises:
        ValueError: the config.yaml is damaged.
    """
    file = (source if source.is_dir() else source.parent) / _SETTINGS
    if not file.is_file() or (source.is_file() and source.suffix != ".ckpt"):
        return False
    settings = read_yaml(file)
    return "stage" not in settings and isinstance(settings.get("ddconfig"), Mapping) and "n_embed" in settings


def weights_of(source: Path) -> Path:
    """The weight file of such a source.

    Raises:
        ValueError: there is none.
    """
    file = source / _WEIGHTS if source.is_dir() else source
    if not file.is_file():
        raise ValueError(f"{source} has the {_SETTINGS} of an IBQ and no {_WEIGHTS}: fetch it too")
    return file


def is_of(found: Published) -> bool:
    """Whether what was read as a VQGAN of taming-transformers is of this family, by the number of its codes alone."""
    quantizer = found.config.quantizer
    return isinstance(quantizer, VQConfig) and quantizer.codebook_size == _CODES


def read(tensors: dict[str, Tensor], source: Path | None = None) -> Published:
    """Convert the tensors of a checkpoint.

    Args:
        tensors: tensors by their published names.
        source: the folder or file with its config.yaml; None: there is none.

    Raises:
        ValueError: they are of something else, or not of the sizes that config.yaml says.
    """
    found = vqgan.read(tensors, _SIZE)
    quantizer = found.config.quantizer
    if not isinstance(quantizer, VQConfig) or quantizer.distance != "euclidean":
        raise ValueError("it has no codebook of vectors as an IBQ has it: it is another VQGAN")
    if source is not None:
        _check(source, quantizer)
    config = replace(found.config, quantizer=replace(quantizer, distance="dot"))
    return replace(found, family=FAMILY, license=LICENSE, config=config)


def _check(source: Path, quantizer: VQConfig) -> None:
    settings = read_yaml((source if source.is_dir() else source.parent) / _SETTINGS)
    if settings.get("cosine_similarity") or settings.get("l2_normalize"):
        raise ValueError(f"its {_SETTINGS} asks for normalized codes, which is not supported")
    sizes = settings.get("n_embed"), settings.get("embed_dim")
    own = quantizer.codebook_size, quantizer.code_channels
    if sizes != own:
        raise ValueError(f"its {_SETTINGS} says codes and channels {sizes}, its tensors {own}: they are of two models")
