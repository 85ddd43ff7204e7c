"""Detects the family of a published text-to-image model from its files, and reads it with its tokenizers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from dalle.checkpoints.published import chameleon, cosmos, dalle_pytorch, llamagen, mindalle, rudalle, vqgan
from dalle.checkpoints.published.declared import declared
from dalle.checkpoints.published.files import PICKLES, index_of, read_json, read_stored_state, weights_file
from dalle.checkpoints.published.image_tokenizers import read_image_tokenizer, tokenizer_of_dalle_pytorch
from dalle.checkpoints.published.language_models import LANGUAGE_MODELS, family_of, read_language_model
from dalle.checkpoints.published.llama import SETTINGS
from dalle.checkpoints.published.others import reject_unsupported
from dalle.checkpoints.published.pickles import read_pickled
from dalle.checkpoints.published.state import SHAPE_ERRORS, Published
from dalle.checkpoints.published.stored_state import named_tensors, stored_state, strip_wrappers, training_options
from dalle.checkpoints.published.text_tokenizers import (
    CLIP_SOURCE,
    CLIP_WORDS,
    find_text_tokenizer,
    read_text_tokenizer,
)
from dalle.generation.options import SamplingConfig
from dalle.image_tokenizers import ImageCodes
from dalle.models.dalle_config import DALLEConfig
from dalle.text_tokenizers import ClassTokenizer, ClassTokenizerConfig, TextTokenizer

FAMILIES = ("mindalle", "rudalle", "dalle-pytorch", "llamagen", *LANGUAGE_MODELS)
_GIVEN = ("heads", "convention", "grid", "roles")
_PIPELINE = "model_index.json"


@dataclass(frozen=True)
class PublishedModel:
    """A published model, with those of its components that are in the same files.

    Attributes:
        model: the transformer.
        file: its weight file.
        sampling: its project's default sampling options.
        image_tokenizer: the image tokenizer, if the same files contain it.
        text_tokenizer: the text tokenizer, if the same files contain it.
        codes: what its image codes are, and where their image tokenizer is published; None: whatever is given.
        text_source: hub id of the text tokenizer or text encoder otherwise; "" if unknown.
        add_special_tokens: whether the text tokenizer adds begin and end tokens.
    """

    model: Published
    file: Path
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    image_tokenizer: Published | None = None
    text_tokenizer: TextTokenizer | None = None
    codes: ImageCodes | None = None
    text_source: str = ""
    add_special_tokens: bool = True

    @property
    def image_source(self) -> str:
        """Hub id of the image tokenizer, if the files do not contain it; "" if unknown."""
        return "" if self.codes is None else self.codes.source


def read_model(
    source: Path, family: str | None = None, given: Mapping[str, Any] | None = None, *, weights: bool = True
) -> PublishedModel:
    """Read a published text-to-image model.

    Args:
        source: the file or folder.
        family: one of `FAMILIES`; None detects it.
        given: what the files do not record: `heads`, `convention` (ruDALL-E), `grid` (LlamaGen, Janus), `roles`
            (Janus).
        weights: False: of a language model whose folder has no weights yet, the shapes that its config.json declares
            take their place, for a plan.

    Raises:
        ValueError: it is of no known family, is damaged, or an option has to be given; one line that names the source.
    """
    options = dict(given or {})
    if family is not None and family not in FAMILIES:
        raise ValueError(f"family is {family!r}; expected one of {', '.join(FAMILIES)}")
    unknown = sorted(set(options) - set(_GIVEN))
    if unknown:
        raise ValueError(f"unknown option {unknown[0]}: expected one of {', '.join(_GIVEN)}")
    try:
        if not weights and declares(source):
            tensors = declared(read_json(source / SETTINGS))
            return _language_model(source, source / SETTINGS, tensors, family, options)
        return _read(source, family, options)
    except ValueError as error:
        reason = str(error)
        raise ValueError(reason if str(source) in reason else f"{source} cannot be loaded: {reason}") from error
    except SHAPE_ERRORS as error:
        raise ValueError(f"{source} cannot be loaded: its tensors do not have the expected shapes") from error


def declares(source: Path) -> bool:
    """Whether a folder has a config.json and no weights beside it, as one whose weights are not fetched yet."""
    weights = (".safetensors", *PICKLES)
    return (source / SETTINGS).is_file() and not any(file.suffix in weights for file in source.iterdir())


def _read(source: Path, family: str | None, given: dict[str, Any]) -> PublishedModel:
    if family == "mindalle" or (family is None and mindalle.is_there(source)):
        return _mindalle(source, given)
    if cosmos.is_alone(source):
        raise ValueError("it is an image tokenizer of Cosmos: give it as the image tokenizer of a model")
    folder = source if source.is_dir() else source.parent
    if any((place / _PIPELINE).is_file() for place in (folder, folder.parent)):
        raise ValueError("it is a pipeline of diffusers, or a part of one: it draws by diffusion, not by image tokens")
    file = transformer_file(source)
    if file.suffix in (".safetensors", ".json") or family in LANGUAGE_MODELS:  # an index of shards
        return _language_model(source, file, read_stored_state(file), family, given)
    tree = read_pickled(file)
    if family == "dalle-pytorch" or (family is None and dalle_pytorch.is_of(tree)):
        if not dalle_pytorch.is_of(tree):
            raise ValueError(
                f"{file} has no hparams, vae_params and weights, so it is not of DALLE-pytorch: omit family"
            )
        found = dalle_pytorch.read(tree)
        return PublishedModel(
            found,
            file,
            image_tokenizer=tokenizer_of_dalle_pytorch(strip_wrappers(tree["weights"]), tree["vae_params"]),
            text_tokenizer=find_text_tokenizer(folder, add_special_tokens=False),
            # Its default vocabulary is CLIP's
            text_source=CLIP_SOURCE if found.config.text_vocab == CLIP_WORDS else "",
            add_special_tokens=False,
        )
    # Before wrappers are removed: names of language models begin with "model."
    if family is None and family_of(stored_state(tree), file.parent) is not None:
        return _language_model(source, file, stored_state(tree), family, given)
    tensors = named_tensors(tree)
    if family == "rudalle" or (family is None and rudalle.is_of(tensors)):
        return PublishedModel(
            rudalle.read(tensors, given),
            file,
            rudalle.SAMPLING,
            image_tokenizer=_find_image_tokenizer(folder, "vqgan.gumbelf8*.ckpt"),
            text_tokenizer=find_text_tokenizer(folder),
            codes=rudalle.CODES,
            text_source=rudalle.TEXT_TOKENIZER,
        )
    if family == "llamagen" or (family is None and llamagen.is_of(tensors)):
        found = llamagen.read(tensors, training_options(tree), file.name, given)
        assert isinstance(found.config, DALLEConfig)
        images = _find_image_tokenizer(folder, "vq_ds*.pt")
        if found.config.text_features is not None:
            return PublishedModel(
                found,
                file,
                llamagen.T2I_SAMPLING,
                image_tokenizer=images,
                codes=llamagen.T2I_CODES,
                text_source=llamagen.TEXT_ENCODER,
            )
        # One id is that of no class
        classes = ClassTokenizer(ClassTokenizerConfig(classes=found.config.text_vocab - 1))
        return PublishedModel(
            found,
            file,
            llamagen.C2I_SAMPLING,
            image_tokenizer=images,
            text_tokenizer=classes,
            codes=llamagen.C2I_CODES,
        )
    reject_unsupported(stored_state(tree))
    raise ValueError(
        "it is not a known text-to-image model: expected minDALL-E, ruDALL-E, DALLE-pytorch, LlamaGen, Janus, Anole, "
        "Lumina-mGPT, Liquid, Emu3, Emu3.5 or SimpleAR, or a model folder made by train.py (config.yaml)"
    )


def _language_model(
    source: Path, file: Path, tensors: dict[str, Tensor], family: str | None, given: dict[str, Any]
) -> PublishedModel:
    found = read_language_model(source, file, tensors, family, given)
    return PublishedModel(
        found.model,
        file,
        found.sampling,
        image_tokenizer=found.image_tokenizer,
        text_tokenizer=found.text_tokenizer,
        codes=found.codes,
    )


def _mindalle(source: Path, given: dict[str, Any]) -> PublishedModel:
    words = read_text_tokenizer(source / mindalle.TOKENIZER)
    images = None
    if (source / mindalle.IMAGES).is_file():
        images = vqgan.read(named_tensors(read_pickled(source / mindalle.IMAGES)), 256)  # pixels
    return PublishedModel(
        mindalle.read(source, words.pad_id, given),
        source / mindalle.TRANSFORMER,
        mindalle.SAMPLING,
        image_tokenizer=images,
        text_tokenizer=words,
        codes=mindalle.CODES,
    )


def transformer_file(source: Path) -> Path:
    """The file with the transformer, in a folder that may contain an image tokenizer too."""
    if not source.is_dir():
        return weights_file(source)
    found = index_of(source) or chameleon.consolidated(source)
    if found is not None:
        return found
    files = [file for file in sorted(source.iterdir()) if file.suffix in (".pt", ".bin", ".ckpt", ".pth")]
    # LlamaGen and ruDALL-E are used with an image tokenizer's file in the same folder
    others = [file for file in files if not file.name.startswith(("vq_", "vqgan"))]
    return others[0] if len(others) == 1 else weights_file(source)


def _find_image_tokenizer(folder: Path, pattern: str) -> Published | None:
    found = sorted(folder.glob(pattern))
    return read_image_tokenizer(found[0]) if len(found) == 1 else None
