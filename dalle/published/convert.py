"""Published weights of any kind as an ordinary folder with a card, and what is told of them beforehand."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from dalle import artifact
from dalle.clip import CLIP, CLIPConfig
from dalle.config import to_dict
from dalle.hub import resolve
from dalle.image import ImageTokenizer, build
from dalle.model import DALLE, DALLEConfig
from dalle.published import dalle_pytorch, llamagen, mindalle, openai_dvae, rudalle
from dalle.published.clip import read_clip
from dalle.published.files import read_state
from dalle.published.image_tokenizers import read_image_tokenizer, sized
from dalle.published.models import PublishedModel, read_model, transformer_file
from dalle.published.pickles import read_pickled
from dalle.published.state import Published, state_of
from dalle.published.text_tokenizers import read_text_tokenizer
from dalle.text import TextTokenizer
from dalle.weights import Storage, check_fit

Stage = Literal["image_tokenizer", "clip", "dalle"]
_Source = str | Path | None
_CARD = """# {name}

{family}, converted from {source}: what it holds is what was published there.

{summary}

Its licence and the terms of its use are those of that project. Made by `python -m dalle convert` (docs/checkpoints.md).
"""


def stage_of(source: Path) -> Stage:
    """What kind of weights a file or folder holds, by their names.

    Raises:
        ValueError: there is no such file, or it is damaged; one line that names it.
    """
    if not source.exists():
        raise ValueError(f"{source}: no such file or folder")
    if mindalle.is_there(source):
        return "dalle"
    if (source / "config.yaml").is_file():
        raise ValueError(f"{source} has a config.yaml: it is a folder of weights as train.py makes them already")
    if openai_dvae.is_there(source):
        return "image_tokenizer"
    try:
        file = transformer_file(source)
        if file.suffix == ".safetensors" or file.name.endswith(".json"):
            names = read_state(file)
        else:
            tree = read_pickled(file)
            if dalle_pytorch.is_of(tree):
                return "dalle"
            names = state_of(tree)
    except ValueError as error:
        told = str(error)
        raise ValueError(told if str(source) in told else f"{source} cannot be loaded: {told}") from error
    if rudalle.is_of(names) or llamagen.is_of(names):
        return "dalle"
    return "clip" if any(name.startswith(("visual.", "vision_model.")) for name in names) else "image_tokenizer"


def inspect(source: str | Path, given: Mapping[str, Any] | None = None) -> str:
    """Lines that say what a published source is; nothing of its weights is read.

    Raises:
        ValueError: it is nothing that is known, or damaged.
    """
    path = resolve(source)
    stage = stage_of(path)
    if stage == "dalle":
        found = read_model(path, None, given)
        return f"{source}: {found.model.family}\n{_model_summary(found)}"
    plain = read_clip(path, given) if stage == "clip" else read_image_tokenizer(path)
    return f"{source}: {plain.family}\n{summary(plain)}"


def convert(
    source: str | Path,
    out: Path,
    storage: Storage,
    *,
    image_tokenizer: _Source = None,
    text_tokenizer: _Source = None,
    given: Mapping[str, Any] | None = None,
) -> Published:
    """Write published weights as a folder that the loaders and every recipe take.

    Args:
        source: file, folder or hub id.
        out: folder to write, whole or not at all.
        storage: how the weights are stored.
        image_tokenizer: of a text-to-image model whose files do not hold it.
        text_tokenizer: of a text-to-image model or a CLIP whose files do not hold it.
        given: what the files do not tell.

    Raises:
        ValueError: `out` is there already, or `source` is of no known family, damaged, or lacks something.
    """
    if out.exists():
        raise ValueError(f"{out} is there already: give a folder that is not")
    path = resolve(source)
    stage = stage_of(path)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dalle-convert-")))
        if stage == "dalle":
            model = read_model(path, None, given)
            parts = _model_parts(model, image_tokenizer, text_tokenizer, scratch)
            more: dict[str, Any] = {"sampling": to_dict(model.sampling)}
            if model.model.config.text_features is not None:
                more["text_encoder"] = model.text_source
            _write(out, stage, model.model, _model_summary(model), path.name, storage, parts, more)
            return model.model
        if stage == "clip":
            found = read_clip(path, given)
            words = read_text_tokenizer(
                (path if path.is_dir() else path.parent) if text_tokenizer is None else resolve(text_tokenizer)
            )
            words.save(scratch / "text_tokenizer")
            parts = {"text_tokenizer": scratch / "text_tokenizer"}
        else:
            found, parts = read_image_tokenizer(path), {}
        _write(out, stage, found, summary(found), path.name, storage, parts, {})
        return found


def _model_parts(model: PublishedModel, images: _Source, words: _Source, scratch: Path) -> dict[str, Path]:
    """Folders of the tokenizers of a model: those given, or those that its files hold."""
    parts: dict[str, Path] = {}
    if images is not None and (resolve(images) / "config.yaml").is_file():
        parts["image_tokenizer"] = resolve(images)
    else:
        found = model.image_tokenizer if images is None else read_image_tokenizer(resolve(images))
        if found is not None:
            found = sized(found, model.model.config.grid[0])
            parts["image_tokenizer"] = scratch / "image_tokenizer"
            _write(parts["image_tokenizer"], "image_tokenizer", found, summary(found), "", None, {}, {})
    read: TextTokenizer | None = model.text_tokenizer
    if words is not None:
        read = read_text_tokenizer(resolve(words), model.text_ends)
    if read is not None:
        parts["text_tokenizer"] = scratch / "text_tokenizer"
        read.save(parts["text_tokenizer"])
    return parts


def _write(
    out: Path,
    stage: Stage,
    found: Published,
    told: str,
    source: str,
    storage: Storage | None,
    parts: Mapping[str, Path],
    more: Mapping[str, Any],
) -> None:
    check_fit(_without_weights(found), found.tensors, source)
    config = {"stage": stage, "model": to_dict(found.config), "origin": f"{found.family}, {source}", **more}
    family = found.family[0].upper() + found.family[1:]
    card = _CARD.format(name=out.name, family=family, source=source, summary=told)
    artifact.save(out, config, found.tensors, parts=parts, storage=storage, card=card)


def summary(found: Published) -> str:
    """What an image tokenizer or a CLIP is."""
    module = _without_weights(found)
    lines = {}
    if isinstance(module, ImageTokenizer):
        rows, columns = module.grid
        size = module.image_size
        lines["pictures"] = f"{size}x{size} to {rows}x{columns} codes of {module.codebook_size:,}"
    elif isinstance(found.config, CLIPConfig):
        config = found.config
        lines["pictures"] = f"{config.image_size}x{config.image_size} in patches of {config.patch_size}"
        lines["captions"] = f"{config.text_length} tokens of {config.text_vocab:,}; {config.embed_dim} dimensions"
    return _listed(lines | _common(found, module))


def _model_summary(found: PublishedModel) -> str:
    """What a text-to-image model is, and what it stands on."""
    config = found.model.config
    assert isinstance(config, DALLEConfig)
    shape, (rows, columns) = config.transformer, config.grid
    text = f"{config.text_length} tokens of {config.text_vocab:,}"
    if config.text_features is not None:
        text = f"{config.text_length} features of {config.text_features:,} channels"
    lines = {
        "architecture": f"{shape.depth} layers, width {shape.width}, {shape.heads} heads",
        "text": f"{text}; {_where(found.text_tokenizer, found.text_source, 'text_tokenizer')}",
        "pictures": f"{rows}x{columns} codes of {config.image_vocab:,}; "
        f"{_where(found.image_tokenizer, found.image_source, 'image_tokenizer')}",
    }
    return _listed(lines | _common(found.model, _without_weights(found.model)))


def _where(part: object, source: str, option: str) -> str:
    return "tokenizer in these files" if part is not None else f"read from {source}" if source else f"give {option}"


def _common(found: Published, module: nn.Module) -> dict[str, str]:
    count = sum(parameter.numel() for parameter in module.parameters())
    return {
        "parameters": f"{count:,}, {count * 4 / 1e9:.2f} GB in float32, {count * 2 / 1e9:.2f} GB in bfloat16",
        "licence": f"{found.licence}, as its project states it",
        "left out": f"{len(found.dropped):,} tensors of its training" if found.dropped else "nothing",
    }


def _listed(lines: Mapping[str, str]) -> str:
    return "\n".join(f"- {name}: {text}" for name, text in lines.items())


def _without_weights(found: Published) -> nn.Module:
    """The module without its numbers."""
    with torch.device("meta"):
        if isinstance(found.config, DALLEConfig):
            return DALLE(found.config)
        return CLIP(found.config) if isinstance(found.config, CLIPConfig) else build(found.config)
