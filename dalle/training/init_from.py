"""Training that goes on from weights that are there already: a folder of ours, or what others have published.

Published weights are converted into RUN/initial first, so that the run stands on ordinary folders with hashes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dalle.checkpoints.hub import resolve
from dalle.checkpoints.load import is_model_folder, open_source
from dalle.checkpoints.model_folder import WEIGHTS, ModelFolder
from dalle.checkpoints.published.clip import read_clip
from dalle.checkpoints.published.convert import convert
from dalle.checkpoints.published.models import read_model
from dalle.checkpoints.tensors import Tensors, load_weights, open_tensors
from dalle.config import apply_overrides, read_yaml, to_dict
from dalle.models.clip import CLIP, initial_scale_and_bias
from dalle.models.dalle import DALLE
from dalle.training.recipe import CLIPRecipe, DALLERecipe, Recipe, parse_recipe
from dalle.training.shipped_recipes import find_recipe

FOLDER = "initial"


def resolve_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """`load_recipe`, with what the weights that `init_from` names say filled in.

    Raises:
        ConfigError: as `load_recipe`.
        ValueError: as `with_initial`.
    """
    return parse_recipe(with_initial(apply_overrides(read_yaml(find_recipe(path)), overrides)), str(path))


def with_initial(data: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's data with the architecture and the tokenizers of what its `init_from` names, unless it says others.

    Raises:
        ValueError: nothing is there, or it is no model of the recipe's stage.
    """
    settled = copy.deepcopy(dict(data))
    source = settled.get("init_from")
    if source is None or settled.get("stage") not in ("dalle", "clip"):
        return settled
    if settled["stage"] == "clip":
        return _with_clip(settled, str(source))
    opened = open_source(str(source))
    if isinstance(opened, ModelFolder):
        content = opened.config
        if content.get("stage") != "dalle":
            raise ValueError(f"init_from: {source} is of stage {content.get('stage')!r}; expected a DALL-E")
        found = {name: str(opened.path / name) for name in opened.components}
        if "text_encoder" in content:
            found["text_tokenizer"] = content["text_encoder"]
        model, sampling = content.get("model") or {}, content.get("sampling")
    else:
        published = read_model(opened)
        place = Path(str((settled.get("run") or {}).get("dir", "run"))) / FOLDER
        names = ("image_tokenizer", "text_tokenizer")
        found = {name: str(place / name) for name in names if getattr(published, name) is not None}
        if published.model.config.text_features is not None:
            found["text_tokenizer"] = published.text_source
        model, sampling = to_dict(published.model.config), to_dict(published.sampling)
    settled["model"] = _merged(model, settled.get("model") or {})
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
        words = str(Path(str((settled.get("run") or {}).get("dir", "run"))) / FOLDER / "text_tokenizer")
        model = to_dict(read_clip(opened).config)
    loss = settled.setdefault("loss", "sigmoid" if model.get("sigmoid") else "softmax")
    own = {"sigmoid": loss == "sigmoid"} | ({} if loss == "sigmoid" else {"initial_bias": None})
    settled["model"] = _merged(_merged(model, own), settled.get("model") or {})
    settled.setdefault("text_tokenizer", words)
    return settled


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def prepare_initial(recipe: DALLERecipe | CLIPRecipe) -> None:
    """Convert published weights that a run goes on from, unless that is done."""
    assert recipe.init_from is not None
    path = resolve(recipe.init_from)
    place = recipe.run.dir / FOLDER
    if not is_model_folder(path) and not place.exists():
        convert(path, place, "float32")


def fill_initial(model: DALLE | CLIP, recipe: DALLERecipe | CLIPRecipe) -> None:
    """Give a model the weights that a run goes on from; a CLIP with another loss learns its scale and bias anew.

    Raises:
        ValueError: they are of another architecture.
    """
    file = _file(recipe)
    tensors = open_tensors(file)
    if isinstance(model, DALLE):
        load_weights(model, tensors, str(file)).recognise()
        return
    if ("logit_bias" in tensors) != model.config.sigmoid:
        kept = {name: tensor for name, tensor in tensors.items() if name not in ("logit_scale", "logit_bias")}
        scale, bias = initial_scale_and_bias(model.config)
        tensors = kept | {"logit_scale": scale} | ({} if bias is None else {"logit_bias": bias})
    load_weights(model, tensors, str(file))


def initial_weights(recipe: DALLERecipe) -> Tensors:
    """The weights that a run goes on from, mapped from their file."""
    return open_tensors(_file(recipe))


def _file(recipe: DALLERecipe | CLIPRecipe) -> Path:
    assert recipe.init_from is not None
    path = resolve(recipe.init_from)
    return (path if is_model_folder(path) else recipe.run.dir / FOLDER) / WEIGHTS
