"""Converts published weights of any kind to a model folder with a card (`python -m dalle convert`)."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dalle.checkpoints import model_folder
from dalle.checkpoints.hub import resolve
from dalle.checkpoints.image_codes import KEY
from dalle.checkpoints.model_folder import ModelFolder
from dalle.checkpoints.published import ibq, mindalle
from dalle.checkpoints.published.clip import check_text_tokenizer, read_clip
from dalle.checkpoints.published.image_tokenizers import read_image_tokenizer, resize_tokenizer
from dalle.checkpoints.published.models import PublishedModel, read_model
from dalle.checkpoints.published.state import Published
from dalle.checkpoints.published.summary import Stage, model_summary, stage_of, summary, without_weights
from dalle.checkpoints.published.text_tokenizers import clip_text_tokenizer, read_text_tokenizer
from dalle.checkpoints.published.unclip import PublishedUnCLIP, read_unclip
from dalle.checkpoints.quantization import Storage
from dalle.config import from_dict, renamed, to_dict
from dalle.files import atomic_folder
from dalle.generation.progress import Progress
from dalle.image_tokenizers import ImageTokenizer, ImageTokenizerConfig, check_codes, codes_of
from dalle.text_tokenizers import TextTokenizer

_Source = str | Path | None
_CARD = """# {name}

{family}, converted from {source}; the weights are those published there.

{summary}

That project's license and terms of use apply. Made by `python -m dalle convert` (docs/checkpoints.md).
"""


def convert(
    source: str | Path,
    out: Path,
    storage: Storage,
    *,
    image_tokenizer: _Source = None,
    text_tokenizer: _Source = None,
    prior: _Source = None,
    given: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Published | PublishedUnCLIP:
    """Convert published weights to a model folder, which all loaders and recipes accept.

    Args:
        source: file, folder or hub id.
        out: folder to write, atomically.
        storage: dtype in which floating-point weights are stored.
        image_tokenizer: for a text-to-image model whose files do not contain one.
        text_tokenizer: for a text-to-image model or a CLIP whose files do not contain one.
        prior: of Kandinsky 2.2, which is published apart from its decoder.
        given: what the files do not record; for an image tokenizer `image_size`, if its images are to have another side
            in pixels than those it was trained on. Image tokenizers of ours are converted so too.
        progress: called after each tensor of each file of weights with the bytes written and those of the file.

    Returns:
        The converted model.

    Raises:
        ValueError: `out` exists, `source` is of no known family, damaged or incomplete, or something is given that its
            kind does not use.
    """
    if out.exists():
        raise ValueError(f"{out} exists: give a new folder")
    path = resolve(source)
    given = dict(given or {})
    ours = (path / "config.yaml").is_file() and not mindalle.is_there(path) and not ibq.is_there(path)
    if "image_size" in given and ours:
        _refuse("an image tokenizer", image_tokenizer=image_tokenizer, text_tokenizer=text_tokenizer, prior=prior)
        return _convert_own_tokenizer(path, out, storage, given, progress)
    stage = stage_of(path)
    if stage == "unclip":
        _refuse("an unCLIP", given, image_tokenizer=image_tokenizer, text_tokenizer=text_tokenizer)
        unclip = read_unclip(path, None if prior is None else resolve(prior))
        _write_unclip(out, unclip, path.name, storage, progress)
        return unclip
    if prior is not None:
        raise ValueError(f"prior is for an unCLIP, and {source} is none: leave it out")
    with ExitStack() as stack:  # for tokenizers that are saved on the way
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dalle-convert-")))
        if stage == "dalle":
            model = read_model(path, None, given)
            parts = _model_parts(model, image_tokenizer, text_tokenizer, scratch)
            more: dict[str, Any] = {"sampling": to_dict(model.sampling)}
            if "image_tokenizer" not in parts and model.codes is not None:
                more[KEY] = to_dict(model.codes)
            if model.model.config.text_features is not None:
                more["text_encoder"] = model.text_source
            _write(out, stage, model.model, model_summary(model), path.name, storage, parts, more, progress)
            return model.model
        if stage == "clip":
            _refuse("a CLIP", image_tokenizer=image_tokenizer)
            found, parts = read_clip(path, given), {}
            if found.config.missing == "text":
                _refuse("a CLIP without a text tower", text_tokenizer=text_tokenizer)
            else:
                parts = _clip_parts(found, path, text_tokenizer, scratch)
        else:
            _refuse("an image tokenizer", image_tokenizer=image_tokenizer, text_tokenizer=text_tokenizer)
            found, parts = _resized(read_image_tokenizer(path), given, source), {}
        _write(out, stage, found, summary(found), path.name, storage, parts, {}, progress)
        return found


def _refuse(kind: str, given: Mapping[str, Any] | None = None, **parts: _Source) -> None:
    """Refuse facts and parts that are given and that models of a kind do not use."""
    unused = [*(given or {}), *(name for name, part in parts.items() if part is not None)]
    if unused:
        raise ValueError(f"{unused[0]} is not for {kind}: leave it out")


def _convert_own_tokenizer(
    path: Path, out: Path, storage: Storage, given: Mapping[str, Any], progress: Progress | None
) -> Published:
    folder = ModelFolder(path)
    if folder.config.get("stage") != "image_tokenizer":
        raise ValueError(f"image_size: {path} is of stage {folder.config.get('stage')!r}; expected an image tokenizer")
    config = from_dict(ImageTokenizerConfig, renamed(folder.config.get("model") or {}), folder.origin)
    own = Published("image tokenizer", "as stated in its card", config, folder.tensors(), [])
    folder.check()  # its weights get a new hash, by which damage would pass for whole
    found = _resized(own, given, path)
    _write(out, "image_tokenizer", found, summary(found), path.name, storage, {}, {}, progress)
    return found


def _resized(found: Published, given: Mapping[str, Any], source: str | Path) -> Published:
    """An image tokenizer for images of `image_size` pixels a side, if that is given."""
    module = without_weights(found.config)
    assert isinstance(module, ImageTokenizer)
    size, factor = given.get("image_size"), module.factor
    if unknown := sorted(set(given) - {"image_size"}):
        raise ValueError(f"{', '.join(unknown)}: an image tokenizer takes only image_size")
    if size is None:
        return found
    if type(size) is not int or size < factor or size % factor:
        raise ValueError(f"image_size is {size}; {source} needs a multiple of {factor} pixels")
    return resize_tokenizer(found, size // factor)


def _clip_parts(found: Published, path: Path, text_tokenizer: _Source, scratch: Path) -> dict[str, Path]:
    """The folder with the text tokenizer of a CLIP: the one given, or its own."""
    if text_tokenizer is None:
        words = clip_text_tokenizer(path, found.config.towers)
    else:
        words = read_text_tokenizer(resolve(text_tokenizer))
    check_text_tokenizer(found, words)
    words.save(scratch / "text_tokenizer")
    return {"text_tokenizer": scratch / "text_tokenizer"}


def _write_unclip(out: Path, found: PublishedUnCLIP, source: str, storage: Storage, progress: Progress | None) -> None:
    """A folder as `dalle.checkpoints.unclip.assemble` writes it: the CLIP lies there once, beside all parts."""
    for part in (found.clip, *found.parts.values()):
        # Before the first file is written: these are gigabytes
        part.check(without_weights(part.config), source)
    origin = f"{found.family}, {source}"
    with atomic_folder(out) as new, tempfile.TemporaryDirectory(prefix="dalle-convert-") as scratch:
        words = Path(scratch) / "text_tokenizer"
        found.words.save(words)
        clip = {"stage": "clip", "model": to_dict(found.clip.config), "origin": origin}
        own = {"text_tokenizer": words}
        model_folder.save(new / "clip", clip, found.clip.tensors, parts=own, storage=storage, progress=progress)
        recorded = {"clip": {"path": "clip", "sha256": model_folder.folder_hash(new / "clip")}}
        for name, part in found.parts.items():
            stage = "prior" if name == "prior" else "autoencoder" if name == "autoencoder" else "diffusion"
            config: dict[str, Any] = {"stage": stage, "model": to_dict(part.config), "origin": origin}
            if name in found.sampling:
                config["sampling"] = found.sampling[name]
            if name in ("prior", "decoder"):
                # Relative, so that the folder can be moved; the hash notices another CLIP in its place
                config["parts"] = {"clip": {"path": "../clip", "sha256": recorded["clip"]["sha256"]}}
            model_folder.save(new / name, config, part.tensors, storage=storage, progress=progress)
            recorded[name] = {"path": name, "sha256": model_folder.folder_hash(new / name)}
        model_folder.write_config(new, {"stage": "unclip", "model": {}, "parts": recorded, "origin": origin})
        lines = f"Parts: {', '.join(recorded)}. License of the weights: {found.license}."
        card = _CARD.format(name=out.name, family=found.family, source=source, summary=lines)
        (new / "README.md").write_text(card, encoding="utf-8")


def _model_parts(model: PublishedModel, images: _Source, words: _Source, scratch: Path) -> dict[str, Path]:
    """Folders with the tokenizers of a model: those given, or those in its files."""
    parts: dict[str, Path] = {}
    if images is not None and (resolve(images) / "config.yaml").is_file() and not ibq.is_there(resolve(images)):
        parts["image_tokenizer"] = resolve(images)
        own = ModelFolder(resolve(images))
        if own.config.get("stage") != "image_tokenizer":
            raise ValueError(f"{images} is of stage {own.config.get('stage')!r}; expected an image tokenizer")
        own.check()
        _check_images(
            model, from_dict(ImageTokenizerConfig, renamed(own.config.get("model") or {}), own.origin), str(images)
        )
    else:
        found = model.image_tokenizer if images is None else read_image_tokenizer(resolve(images))
        if found is not None:
            _check_images(model, found.config, str(images or f"the image tokenizer in the files of {model.file}"))
            found = resize_tokenizer(found, model.model.config.grid[0])  # for this model's grid
            parts["image_tokenizer"] = scratch / "image_tokenizer"
            _write(parts["image_tokenizer"], "image_tokenizer", found, summary(found), "", None, {}, {})
    read: TextTokenizer | None = model.text_tokenizer
    if words is not None:
        read = read_text_tokenizer(resolve(words), model.add_special_tokens)
    if read is not None:
        parts["text_tokenizer"] = scratch / "text_tokenizer"
        read.save(parts["text_tokenizer"])
    return parts


def _check_images(model: PublishedModel, config: ImageTokenizerConfig, source: str) -> None:
    check_codes(model.codes, config, source)
    own, wanted = codes_of(config).codes, model.model.config.image_vocab
    if own != wanted:
        raise ValueError(f"{source} has {own:,} codes, and this model draws {wanted:,}: give the image tokenizer of it")


def _write(
    out: Path,
    stage: Stage,
    found: Published,
    description: str,
    source: str,
    storage: Storage | None,
    parts: Mapping[str, Path],
    more: Mapping[str, Any],
    progress: Progress | None = None,
) -> None:
    found.check(without_weights(found.config), source)  # before anything is written
    config = {"stage": stage, "model": to_dict(found.config), "origin": f"{found.family}, {source}", **more}
    family = found.family[0].upper() + found.family[1:]
    card = _CARD.format(name=out.name, family=family, source=source, summary=description)
    model_folder.save(out, config, found.tensors, parts=parts, storage=storage, card=card, progress=progress)
