"""Completes a recipe from the weights that its `init_from` names, and from the tokenizers that it stands on."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dalle.checkpoints.image_codes import recorded_codes
from dalle.checkpoints.model_folder import ModelFolder
from dalle.checkpoints.published.clip import read_clip
from dalle.checkpoints.published.models import read_model
from dalle.checkpoints.source import is_model_folder, open_source
from dalle.config import apply_overrides, from_dict, read_yaml, renamed, to_dict
from dalle.files import ROOT
from dalle.image_tokenizers import ImageTokenizerConfig, build
from dalle.text_tokenizers import JSONTokenizer
from dalle.training.init_image_tokenizer import FOLDER
from dalle.training.init_unclip import initial_part
from dalle.training.recipe import Recipe, parse_recipe
from dalle.training.recipe.shipped import find_recipe


def resolve_recipe(path: Path, overrides: Sequence[str] = (), *, weights: bool = True) -> Recipe:
    """Read a recipe like `load_recipe`, and complete it from the weights that its `init_from` names.

    Args:
        path: the recipe.
        overrides: `key.path=value`.
        weights: False: the weights of `init_from` need not be there, as in `with_initial_config`.

    Raises:
        ConfigError: every mistake of the recipe, as in `load_recipe`.
        ValueError: `init_from` cannot be used, as in `with_initial_config`.
    """
    data = with_initial_config(apply_overrides(read_yaml(find_recipe(path)), overrides), weights)
    return parse_recipe(with_tokenizer_sizes(data), str(path))


def with_tokenizer_sizes(data: dict[str, Any]) -> dict[str, Any]:
    """Fill in the sizes that follow from local tokenizers, where the recipe does not give them.

    These are `model.text_vocab`, and for a DALL-E `model.image_vocab` and `model.grid`. Tokenizers that are not there
    yet, or are published ones, are left to the checks of the stage.

    Args:
        data: recipe as plain data, before validation.
    """
    model = data.get("model")
    if data.get("stage") not in ("dalle", "clip") or not isinstance(model, dict):
        return data
    text = _own_config(data.get("text_tokenizer"), "text_tokenizer")
    if text.get("vocab_size") is not None:
        model.setdefault("text_vocab", text["vocab_size"])
    if data["stage"] == "dalle" and not {"image_vocab", "grid"} <= set(model):
        images = _own_config(data.get("image_tokenizer"), "image_tokenizer")
        if images:
            with torch.device("meta"):  # the grid depends on the architecture: build it without memory
                built = build(from_dict(ImageTokenizerConfig, renamed(images), str(data["image_tokenizer"])))
            model.setdefault("image_vocab", built.codebook_size)
            model.setdefault("grid", list(built.grid))
    return data


def _own_config(source: Any, stage: str) -> dict[str, Any]:
    """The `model:` of a local tokenizer folder of ours; {} if there is none."""
    places = [Path(source), ROOT / source] if isinstance(source, str) else []  # as a recipe's paths are looked up
    folder = next((place for place in places if place.is_dir() and is_model_folder(place)), None)
    content = {} if folder is None else ModelFolder(folder).config
    found = content.get("model") if content.get("stage") == stage else None
    return found if isinstance(found, dict) else {}


def with_initial_config(data: Mapping[str, Any], weights: bool = True) -> dict[str, Any]:
    """Fill in architecture, tokenizers and sampling options from `init_from`, where the recipe does not give them.

    Args:
        data: recipe as plain data, before validation.
        weights: False: of a published language model the config and the text tokenizer suffice, for a plan.

    Raises:
        ValueError: nothing is found at `init_from`, or it is a model of another stage.
    """
    settled = copy.deepcopy(dict(data))
    source = settled.get("init_from")
    if source is None or settled.get("stage") not in ("dalle", "clip", "prior", "diffusion"):
        return settled
    if settled["stage"] == "clip":
        return _with_clip(settled, str(source))
    if settled["stage"] in ("prior", "diffusion"):
        return _with_unclip(settled, str(source))
    opened = open_source(str(source), weights=weights)
    if isinstance(opened, ModelFolder):
        content = opened.config
        if content.get("stage") != "dalle":
            raise ValueError(f"init_from: {source} is of stage {content.get('stage')!r}; expected a DALL-E")
        found = {name: str(opened.path / name) for name in opened.components}
        words = ModelFolder(opened.path / "text_tokenizer").config if "text_tokenizer" in opened.components else {}
        # A tokenizer.json is run by its library, which has no BPE dropout
        merges = (words.get("model") or {}).get("kind") != "tokenizer_json"
        codes = None if "image_tokenizer" in found else recorded_codes(opened)
        if codes is not None and codes.source:
            found["image_tokenizer"] = codes.source
        if "text_encoder" in content:
            found["text_tokenizer"] = content["text_encoder"]
        model, sampling = content.get("model") or {}, content.get("sampling")
    else:
        published = read_model(opened, weights=weights)
        # Where `prepare_initial` puts published weights once the run begins
        place = Path(str(_section(settled, "run").get("dir", "run"))) / FOLDER
        names = ("image_tokenizer", "text_tokenizer")
        found = {name: str(place / name) for name in names if getattr(published, name) is not None}
        if published.image_tokenizer is None and published.image_source:
            found["image_tokenizer"] = published.image_source
        if published.model.config.text_features is not None:
            found["text_tokenizer"] = published.text_source
        model, sampling = to_dict(published.model.config), to_dict(published.sampling)
        merges = not isinstance(published.text_tokenizer, JSONTokenizer)
    if not merges:
        settled.setdefault("bpe_dropout", 0.0)  # its merges are those of a library, which skips none
    _complete(settled, model)
    for name, part in found.items():
        settled.setdefault(name, part)
    if sampling is not None:
        settled.setdefault("sampling", sampling)
    return settled


def _with_clip(settled: dict[str, Any], source: str) -> dict[str, Any]:
    opened = open_source(source)
    if isinstance(opened, ModelFolder):
        if opened.config.get("stage") != "clip":
            raise ValueError(f"init_from: {source} is of stage {opened.config.get('stage')!r}; expected a CLIP")
        words, model = str(opened.path / "text_tokenizer"), opened.config.get("model") or {}
    else:
        words = str(Path(str(_section(settled, "run").get("dir", "run"))) / FOLDER / "text_tokenizer")
        model = to_dict(read_clip(opened).config)
    loss = settled.setdefault("loss", "sigmoid" if model.get("sigmoid") else "softmax")
    # The sigmoid's options follow the loss: an initial bias makes no sense for a softmax
    own = {"sigmoid": loss == "sigmoid"} | ({} if loss == "sigmoid" else {"initial_bias": None})
    _complete(settled, _merged(model, own))
    settled.setdefault("text_tokenizer", words)
    return settled


def _with_unclip(settled: dict[str, Any], source: str) -> dict[str, Any]:
    place = Path(str(_section(settled, "run").get("dir", "run"))) / FOLDER
    found = initial_part(settled, source, place)
    asked, own = _section(settled, "model").get("kind"), found.model.get("kind")
    if None not in (asked, own) and asked != own:
        raise ValueError(
            f"init_from: {source} is of kind {own}, and model.kind is {asked}: fine-tune it by a recipe whose `model:` "
            f"has kind {own}, or is left out"
        )
    _complete(settled, found.model)
    if found.sampling is not None:
        settled.setdefault("sampling", dict(found.sampling))
    if found.clip is not None:
        settled.setdefault("clip", found.clip)
    return settled


def _section(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A section of a recipe; {} if it has none, or something else there, which `parse_recipe` refuses."""
    found = data.get(name)
    return found if isinstance(found, Mapping) else {}


def _complete(settled: dict[str, Any], model: Mapping[str, Any]) -> None:
    """Complete `model:` from that of `init_from`; what is no mapping is left for `parse_recipe` to refuse."""
    if isinstance(settled.get("model") or {}, Mapping):
        settled["model"] = _merged(model, _section(settled, "model"))


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)  # nested mappings key by key, the rest replaced
        merged[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged
