"""Fine-tuning (`init_from`): starts a run from existing weights, one of our model folders or a published checkpoint.

Published weights are first converted to a model folder, RUN/initial, so that everything else deals with one format.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator

from dalle.checkpoints.hub import resolve
from dalle.checkpoints.lazy_tensor import LazyTensor, Tensors
from dalle.checkpoints.model_folder import WEIGHTS, ModelFolder
from dalle.checkpoints.modules import load_weights
from dalle.checkpoints.published.clip import read_clip
from dalle.checkpoints.published.convert import convert
from dalle.checkpoints.published.models import read_model
from dalle.checkpoints.source import is_model_folder, open_source
from dalle.checkpoints.tensors import open_tensors
from dalle.config import apply_overrides, from_dict, read_yaml, renamed, to_dict
from dalle.files import ROOT, check_folder
from dalle.image_tokenizers import ImageTokenizerConfig, build
from dalle.models.autoregressive_prior import AutoregressivePrior
from dalle.models.clip import CLIP, initial_scale_and_bias
from dalle.models.dalle import DALLE
from dalle.models.dalle_config import DALLEConfig
from dalle.models.diffusion_decoder import DiffusionDecoder
from dalle.models.diffusion_prior import DiffusionPrior
from dalle.models.upsampler import Upsampler
from dalle.text_tokenizers import JSONTokenizer
from dalle.training.init_image_tokenizer import FOLDER, prepare_image_tokenizer
from dalle.training.init_unclip import initial_part, part_folder, part_name
from dalle.training.lora import check_installed
from dalle.training.recipe import (
    CLIPRecipe,
    DALLERecipe,
    DiffusionRecipe,
    LoopRecipe,
    PriorRecipe,
    Recipe,
    parse_recipe,
)
from dalle.training.recipe.shipped import find_recipe

_InitFromRecipe = CLIPRecipe | DALLERecipe | PriorRecipe | DiffusionRecipe
_UnCLIPModel = DiffusionPrior | AutoregressivePrior | DiffusionDecoder | Upsampler


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
        if "text_encoder" in content:
            found["text_tokenizer"] = content["text_encoder"]
        model, sampling = content.get("model") or {}, content.get("sampling")
    else:
        published = read_model(opened, weights=weights)
        # Where `prepare_initial` puts published weights once the run begins
        place = Path(str((settled.get("run") or {}).get("dir", "run"))) / FOLDER
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
    # The sigmoid's options follow the loss: an initial bias makes no sense for a softmax
    own = {"sigmoid": loss == "sigmoid"} | ({} if loss == "sigmoid" else {"initial_bias": None})
    settled["model"] = _merged(_merged(model, own), settled.get("model") or {})
    settled.setdefault("text_tokenizer", words)
    return settled


def _with_unclip(settled: dict[str, Any], source: str) -> dict[str, Any]:
    place = Path(str((settled.get("run") or {}).get("dir", "run"))) / FOLDER
    found = initial_part(settled, source, place)
    asked, own = (settled.get("model") or {}).get("kind"), found.model.get("kind")
    if None not in (asked, own) and asked != own:
        raise ValueError(
            f"init_from: {source} is of kind {own}, and model.kind is {asked}: fine-tune it by a recipe whose `model:` "
            f"has kind {own}, or is left out"
        )
    settled["model"] = _merged(found.model, settled.get("model") or {})
    if found.sampling is not None:
        settled.setdefault("sampling", dict(found.sampling))
    if found.clip is not None:
        settled.setdefault("clip", found.clip)
    return settled


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)  # nested mappings key by key, the rest replaced
        merged[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def prepare_initial(recipe: LoopRecipe, accelerator: Accelerator) -> None:
    """Convert published weights of a recipe's `init_from` to RUN/initial, unless that has been done.

    A published image tokenizer of a DALL-E is converted to a folder in it. What is one of our model folders stays where
    it is. The main process converts while the others wait.

    Raises:
        ValueError: the weights cannot be converted, or the recipe asks for LoRA, which is not installed.
    """
    if not isinstance(recipe, _InitFromRecipe):
        return
    if isinstance(recipe, CLIPRecipe | DALLERecipe) and recipe.lora is not None:
        check_installed()  # converting may take minutes
    with accelerator.main_process_first():  # the others find the folders made
        target = recipe.run.dir / FOLDER
        path = None if recipe.init_from is None else resolve(recipe.init_from)
        if path is not None and not is_model_folder(path) and not target.exists():  # made already: the run is resumed
            check_folder(recipe.run.dir, "run.dir=FOLDER")
            convert(path, target, "float32")
        if isinstance(recipe, DALLERecipe):
            prepare_image_tokenizer(recipe)


def load_initial(model: DALLE | CLIP, recipe: DALLERecipe | CLIPRecipe) -> None:
    """Load the weights of `init_from` into a model.

    A DALL-E for another grid gets position embeddings interpolated to it (`resize_positions`). A CLIP trained with
    another loss gets a fresh scale and bias.

    Raises:
        ValueError: the weights are of another architecture.
    """
    file, tensors = _file(recipe), initial_weights(recipe)
    if isinstance(model, DALLE):
        load_weights(model, resize_positions(tensors, model.config), str(file)).detect_sparse_masks()
    else:
        load_weights(model, tensors, str(file))


def load_initial_unclip(model: _UnCLIPModel, recipe: PriorRecipe | DiffusionRecipe) -> None:
    """Load the weights of `init_from` into a part of an unCLIP, with the statistics that it standardizes by.

    Raises:
        ValueError: the weights are of another architecture.
    """
    assert recipe.init_from is not None
    path = resolve(recipe.init_from)
    folder = ModelFolder(path if is_model_folder(path) else recipe.run.dir / FOLDER)
    file = part_folder(folder, part_name(to_dict(recipe))).path / WEIGHTS
    load_weights(model, open_tensors(file), str(file))


def resize_positions(tensors: Tensors, config: DALLEConfig) -> Tensors:
    """Interpolate learned image positions to the grid of a model, linearly between the centers of cells.

    A model trained on small images so goes on with large ones: what it knows of the place "a third down" stays there.
    ViT does the same for fine-tuning at higher resolution (arXiv 2010.11929, section 3.2).

    Args:
        tensors: state dict of a DALL-E for any grid.
        config: the model that the weights are for.

    Returns:
        The state dict with `row_position` [rows, 1, width] and `column_position` [1, columns, width], or
        `cell_position` [rows * columns, width], of the new grid. `tensors` itself if nothing is to be resized. A
        `cell_position` of a grid that was not square stays as it is.
    """
    (rows, columns), changed = config.grid, {}
    for name, shape in (
        ("row_position", (rows, 1)),
        ("column_position", (1, columns)),
        ("cell_position", (rows, columns)),
    ):
        if name not in tensors:
            continue
        value = tensors[name]
        old = (value() if isinstance(value, LazyTensor) else value).float()
        # The grid of cells is not stored, so it is taken to be square
        side = math.isqrt(old.shape[0])
        if name == "cell_position":
            if old.shape[0] == rows * columns or side**2 != old.shape[0]:
                continue
            old = old.view(side, side, -1)
        if old.shape[:2] == shape:
            continue
        grid = old.permute(2, 0, 1)[None]  # [1, C, old rows, old columns]
        new = F.interpolate(grid, shape, mode="bilinear")[0].permute(1, 2, 0)  # [rows, columns, C]
        changed[name] = new.reshape(rows * columns, -1) if name == "cell_position" else new.contiguous()
    return {**tensors, **changed} if changed else tensors


def initial_weights(recipe: DALLERecipe | CLIPRecipe) -> Tensors:
    """Open the weights of `init_from`, memory-mapped; those of a CLIP with the scale and bias of the recipe's loss."""
    tensors = open_tensors(_file(recipe))
    # Only the sigmoid loss has a bias, and its scale has another meaning: neither carries over between losses
    if isinstance(recipe, CLIPRecipe) and ("logit_bias" in tensors) != recipe.model.sigmoid:
        kept = {name: tensor for name, tensor in tensors.items() if name not in ("logit_scale", "logit_bias")}
        scale, bias = initial_scale_and_bias(recipe.model)
        return kept | {"logit_scale": scale} | ({} if bias is None else {"logit_bias": bias})
    return tensors


def _file(recipe: DALLERecipe | CLIPRecipe) -> Path:
    assert recipe.init_from is not None
    path = resolve(recipe.init_from)
    return (path if is_model_folder(path) else recipe.run.dir / FOLDER) / WEIGHTS
