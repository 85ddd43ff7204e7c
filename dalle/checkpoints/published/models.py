"""Which family a published text-to-image model is of, by what its files hold, and what it stands on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dalle.checkpoints.published import dalle_pytorch, llamagen, mindalle, rudalle, vqgan
from dalle.checkpoints.published.files import weights_file
from dalle.checkpoints.published.image_tokenizers import of_dalle_pytorch, read_image_tokenizer
from dalle.checkpoints.published.pickles import read_pickled
from dalle.checkpoints.published.state import SHAPE_ERRORS, Published, arguments_of, state_of, unwrapped
from dalle.checkpoints.published.text_tokenizers import (
    CLIP_SOURCE,
    CLIP_WORDS,
    read_text_tokenizer,
    text_tokenizer_beside,
)
from dalle.generation.options import SamplingConfig
from dalle.models.dalle import DALLEConfig
from dalle.text_tokenizers import ClassTokenizer, ClassTokenizerConfig, TextTokenizer

FAMILIES = ("mindalle", "rudalle", "dalle-pytorch", "llamagen")
_GIVEN = ("heads", "convention", "grid")


@dataclass(frozen=True)
class PublishedModel:
    """A published model, and those of its parts that are at hand.

    Attributes:
        model: the transformer.
        file: its weights.
        sampling: how its project draws with it.
        image_tokenizer: where the same files hold it.
        text_tokenizer: where the same files hold it.
        image_source: where it is otherwise, on a hub; "" where nobody can tell.
        text_source: the same of the text tokenizer, or the text encoder.
        text_ends: whether rows of the text tokenizer begin and end with tokens.
    """

    model: Published
    file: Path
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    image_tokenizer: Published | None = None
    text_tokenizer: TextTokenizer | None = None
    image_source: str = ""
    text_source: str = ""
    text_ends: bool = True


def read_model(source: Path, family: str | None = None, given: Mapping[str, Any] | None = None) -> PublishedModel:
    """The model in a file or folder that somebody has published.

    Args:
        source: the file or folder.
        family: one of `FAMILIES`; None finds out.
        given: what the files do not tell: `heads`, `convention` (ruDALL-E), `grid` (LlamaGen).

    Raises:
        ValueError: it is of no known family, or damaged, or something has to be given; one line that names the source.
    """
    options = dict(given or {})
    if family is not None and family not in FAMILIES:
        raise ValueError(f"family is {family!r}; expected one of {', '.join(FAMILIES)}")
    unknown = sorted(set(options) - set(_GIVEN))
    if unknown:
        raise ValueError(f"{unknown[0]} is not known here; what can be given is {', '.join(_GIVEN)}")
    try:
        return _read(source, family, options)
    except ValueError as error:
        told = str(error)
        raise ValueError(told if str(source) in told else f"{source} cannot be loaded: {told}") from error
    except SHAPE_ERRORS as error:
        raise ValueError(f"{source} cannot be loaded: its tensors are not of the shapes that it should have") from error


def _read(source: Path, family: str | None, given: dict[str, Any]) -> PublishedModel:
    if family == "mindalle" or (family is None and mindalle.is_there(source)):
        return _mindalle(source, given)
    folder = source if source.is_dir() else source.parent
    file = transformer_file(source)
    tree = read_pickled(file)
    if family == "dalle-pytorch" or (family is None and dalle_pytorch.is_of(tree)):
        if not dalle_pytorch.is_of(tree):
            raise ValueError(f"{file} has no hparams, vae_params and weights, as files of DALLE-pytorch have")
        found = dalle_pytorch.read(tree)
        return PublishedModel(
            found,
            file,
            image_tokenizer=of_dalle_pytorch(unwrapped(tree["weights"]), tree["vae_params"]),
            text_tokenizer=text_tokenizer_beside(folder, ends=False),
            text_source=CLIP_SOURCE if found.config.text_vocab == CLIP_WORDS else "",
            text_ends=False,
        )
    tensors = state_of(tree)
    if family == "rudalle" or (family is None and rudalle.is_of(tensors)):
        return PublishedModel(
            rudalle.read(tensors, given),
            file,
            rudalle.SAMPLING,
            image_tokenizer=_images_beside(folder, "vqgan.gumbelf8*.ckpt"),
            text_tokenizer=text_tokenizer_beside(folder),
            image_source=rudalle.IMAGE_TOKENIZER,
            text_source=rudalle.TEXT_TOKENIZER,
        )
    if family == "llamagen" or (family is None and llamagen.is_of(tensors)):
        found = llamagen.read(tensors, arguments_of(tree), file.name, given)
        assert isinstance(found.config, DALLEConfig)
        images = _images_beside(folder, "vq_ds*.pt")
        if found.config.text_features is not None:
            return PublishedModel(
                found,
                file,
                llamagen.T2I_SAMPLING,
                image_tokenizer=images,
                image_source=llamagen.T2I_IMAGES,
                text_source=llamagen.TEXT_ENCODER,
            )
        classes = ClassTokenizer(ClassTokenizerConfig(classes=found.config.text_vocab - 1))
        return PublishedModel(
            found,
            file,
            llamagen.C2I_SAMPLING,
            image_tokenizer=images,
            text_tokenizer=classes,
            image_source=llamagen.C2I_IMAGES,
        )
    raise ValueError(
        "it is no text-to-image model that is known here: expected one of minDALL-E, ruDALL-E, DALLE-pytorch or "
        "LlamaGen, or a folder made by train.py (config.yaml)"
    )


def _mindalle(source: Path, given: dict[str, Any]) -> PublishedModel:
    words = read_text_tokenizer(source / mindalle.TOKENIZER)
    images = None
    if (source / mindalle.IMAGES).is_file():
        images = vqgan.read(state_of(read_pickled(source / mindalle.IMAGES)), 256)
    return PublishedModel(
        mindalle.read(source, words.pad_id, given),
        source / mindalle.TRANSFORMER,
        mindalle.SAMPLING,
        image_tokenizer=images,
        text_tokenizer=words,
    )


def transformer_file(source: Path) -> Path:
    """The file with the transformer, of a folder that may hold an image tokenizer as well."""
    if not source.is_dir():
        return source
    files = [file for file in sorted(source.iterdir()) if file.suffix in (".pt", ".bin", ".ckpt", ".pth")]
    others = [file for file in files if not file.name.startswith(("vq_", "vqgan"))]
    return others[0] if len(others) == 1 else weights_file(source)


def _images_beside(folder: Path, pattern: str) -> Published | None:
    found = sorted(folder.glob(pattern))
    return read_image_tokenizer(found[0]) if len(found) == 1 else None
