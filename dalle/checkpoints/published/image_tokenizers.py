"""Detects the family of a published image tokenizer from its files, and reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dalle.checkpoints.published import cosmos, discrete_vae, emu3_tokenizer, ibq, janus, movqgan, openai_dvae, vqgan
from dalle.checkpoints.published.files import PICKLES, read_stored_state, weights_file
from dalle.checkpoints.published.pickles import read_pickled
from dalle.checkpoints.published.state import Published
from dalle.checkpoints.published.stored_state import named_tensors, strip_wrappers, training_options
from dalle.config import read_yaml
from dalle.image_tokenizers import ImageTokenizer, VQGANConfig, build

_IMAGE_SIZE = 256  # pixels, for VQGANs without a model.yaml


def read_image_tokenizer(source: Path) -> Published:
    """Read a published image tokenizer.

    Args:
        source: its file or folder.

    Raises:
        ValueError: it is of no known family, or damaged; one line that names the file.
    """
    if not source.exists():
        raise ValueError(f"{source}: no such file or folder")
    if (source / "config.yaml").is_file() and not ibq.is_there(source):
        raise ValueError(f"{source} has a config.yaml: it is already a model folder")
    try:
        if openai_dvae.is_there(source):
            return openai_dvae.read(source)
        if cosmos.is_there(source):
            return cosmos.read(source)
        if ibq.is_there(source):
            return ibq.read(named_tensors(read_pickled(ibq.weights_of(source))), source)
        files = [source] if source.is_file() else [path for path in sorted(source.rglob("*")) if path.is_file()]
        own = _of_model(source)
        if own is not None:
            return own
        checkpoints = [path for path in files if path.suffix in PICKLES and path.suffix != ".pkl"]  # .pkl is OpenAI's
        if len(checkpoints) == 1:
            tree = read_pickled(checkpoints[0])
            if discrete_vae.is_of(tree):
                return discrete_vae.read(tree["hparams"], strip_wrappers(tree["weights"]))
            tensors = named_tensors(tree)
            if movqgan.is_of(tensors):
                return movqgan.read(tensors)
            options = _options(source)
            size = _IMAGE_SIZE if options is None else vqgan.resolution(*options)
            found = vqgan.read(tensors, size, training_options(tree))
            if options is None and ibq.is_of(found):
                return ibq.read(tensors)
            if options is None:
                vqgan.reject_ibq(found)
            return found
    except ValueError as error:
        reason = str(error)
        raise ValueError(reason if str(source) in reason else f"{source} cannot be loaded: {reason}") from error
    if (source.parent / "model_index.json").is_file():
        raise ValueError(f"{source} is a part of a pipeline of diffusers: give the whole folder, {source.parent}")
    raise ValueError(
        f"{source} is not an image tokenizer: expected a folder made by train.py (config.yaml), encoder.pkl and "
        "decoder.pkl of OpenAI, one .ckpt or .pt of taming-transformers, LlamaGen, DALLE-pytorch or MoVQGAN, one "
        ".safetensors of Emu3, model.ckpt and config.yaml of Emu3.5, or encoder.jit and decoder.jit of Cosmos"
    )


def find_ibq(folder: Path) -> Published | None:
    """Emu3.5's image tokenizer in a folder beside its transformer's files; None if there is none."""
    found = [path for path in sorted(folder.iterdir()) if path.is_dir() and ibq.is_there(path)]
    return read_image_tokenizer(found[0]) if len(found) == 1 else None


def tokenizer_of_dalle_pytorch(tensors: Mapping[str, Tensor], options: object) -> Published | None:
    """The image tokenizer contained in a DALLE-pytorch checkpoint; None if there is none.

    Args:
        tensors: all weights of the file, by their published names.
        options: `vae_params` of the file.

    Raises:
        ValueError: it is of no known family.
    """
    own = {name.removeprefix("vae."): value for name, value in tensors.items() if name.startswith("vae.")}
    if "codebook.weight" in own:
        return discrete_vae.read(options, own)
    if any(name.startswith("enc.blocks.") for name in own):
        # DALLE-pytorch's wrapper of OpenAI's dVAE
        parts = {"encoder": "enc.", "decoder": "dec."}
        return openai_dvae.of_tensors(
            {
                part: {name.removeprefix(prefix): value for name, value in own.items() if name.startswith(prefix)}
                for part, prefix in parts.items()
            }
        )
    # Its wrapper of taming's VQGANs
    inner = {name.removeprefix("model."): value for name, value in own.items() if name.startswith("model.")}
    return vqgan.read(inner, _IMAGE_SIZE) if inner else None


def resize_tokenizer(found: Published, rows: int) -> Published:
    """The same tokenizer for images with `rows` rows of codes: convolutions work at any size."""
    config = found.config
    size = rows * without_weights(found).factor
    if size == config.image_size:
        return found
    changed: dict[str, Any] = {"image_size": size}
    if isinstance(config, VQGANConfig):
        # The same levels attend, whose resolutions follow the size
        changed["attention_resolutions"] = [r * size // config.image_size for r in config.attention_resolutions]
    return replace(found, config=replace(config, **changed))


def without_weights(found: Published) -> ImageTokenizer:
    """Build the module on the meta device."""
    with torch.device("meta"):
        return build(found.config)


def _of_model(source: Path) -> Published | None:
    """The image tokenizer in the files of a model that has it beside its transformer; None if it has none."""
    try:
        file = weights_file(source)
    except ValueError:  # several files, or none: not such a model's
        return None
    if file.suffix == ".pkl":
        return None
    stored = read_stored_state(file)
    if emu3_tokenizer.is_of(stored):
        return emu3_tokenizer.of_model(stored) or emu3_tokenizer.read(stored)
    return janus.image_tokenizer(stored) if janus.is_of(stored) else None


def _options(source: Path) -> tuple[dict[str, Any], str] | None:
    """The content and path of taming's model.yaml (of Chameleon vqgan.yaml), in a folder or beside a file; or None."""
    names = ("model.yaml", "vqgan.yaml")
    options = [file for name in names for file in (source.rglob(name) if source.is_dir() else [source.with_name(name)])]
    there = [file for file in sorted(options) if file.is_file()]
    return (read_yaml(there[0]), str(there[0])) if there else None
