"""Fine-tuning (`init_from`): starts a run from existing weights, one of our model folders or a published checkpoint.

Published weights are first converted to a model folder, RUN/initial, so that everything else deals with one format.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from pathlib import Path

import torch.nn.functional as F
from accelerate import Accelerator

from dalle.checkpoints.folder_config import WEIGHTS
from dalle.checkpoints.hub import resolve
from dalle.checkpoints.lazy_tensor import LazyTensor, Tensors
from dalle.checkpoints.model_folder import ModelFolder
from dalle.checkpoints.modules import load_weights
from dalle.checkpoints.published.convert import convert
from dalle.checkpoints.published.image_tokenizers import read_image_tokenizer, without_weights
from dalle.checkpoints.source import is_model_folder
from dalle.checkpoints.tensors import open_tensors
from dalle.config import to_dict
from dalle.files import FileLock, check_folder, write_text
from dalle.models.autoregressive_prior import AutoregressivePrior
from dalle.models.clip import CLIP, initial_scale_and_bias
from dalle.models.dalle import DALLE
from dalle.models.dalle_config import DALLEConfig
from dalle.models.diffusion_decoder import DiffusionDecoder
from dalle.models.diffusion_prior import DiffusionPrior
from dalle.models.upsampler import Upsampler
from dalle.training.checkpoint.folders import folders
from dalle.training.init_image_tokenizer import FOLDER, check_image_tokenizer, image_tokenizer_folder
from dalle.training.init_unclip import part_folder, part_name
from dalle.training.lora import check_installed
from dalle.training.recipe import (
    CLIPRecipe,
    DALLERecipe,
    DiffusionRecipe,
    LoopRecipe,
    PriorRecipe,
)

_InitFromRecipe = CLIPRecipe | DALLERecipe | PriorRecipe | DiffusionRecipe
_UnCLIPModel = DiffusionPrior | AutoregressivePrior | DiffusionDecoder | Upsampler
# Of a file that is hashed: blocks of so many bytes, at so many places if it is larger than all of them together
_BLOCK, _PLACES = 2**16, 256


def prepare_initial(recipe: LoopRecipe, accelerator: Accelerator) -> None:
    """Convert published weights of a recipe's `init_from` to RUN/initial, unless that has been done; check our own.

    What was converted from others is replaced, as long as nothing has been trained from it.

    A published image tokenizer of a DALL-E is converted to a folder in it. What is one of our model folders stays where
    it is. The main process converts while the others wait.

    Raises:
        ValueError: the weights cannot be converted, are damaged, or not those that the run has been trained from; or
            the recipe asks for LoRA, which is not installed.
    """
    if not isinstance(recipe, _InitFromRecipe):
        return
    if isinstance(recipe, CLIPRecipe | DALLERecipe) and recipe.lora is not None:
        check_installed()  # converting may take minutes
    with accelerator.main_process_first():  # the others find the folders made
        target = recipe.run.dir / FOLDER
        path = None if recipe.init_from is None else resolve(recipe.init_from)
        if path is not None and not is_model_folder(path):
            _convert_once(recipe, "init_from", path, target, accelerator.is_main_process)
        elif path is not None and accelerator.is_main_process:  # one process reads it all
            own = _initial_folder(recipe, path)
            own.tensors()  # first, as it says more of a file that is missing or cut short
            own.check()
        if isinstance(recipe, DALLERecipe):
            images = resolve(recipe.image_tokenizer)
            if not is_model_folder(images):
                size = recipe.model.grid[0] * without_weights(read_image_tokenizer(images)).factor
                place = image_tokenizer_folder(recipe)
                _convert_once(recipe, "image_tokenizer", images, place, accelerator.is_main_process, size)
            if path is not None:
                check_image_tokenizer(recipe, ModelFolder(path if is_model_folder(path) else target))


def _convert_once(
    recipe: LoopRecipe, option: str, source: Path, target: Path, is_main: bool, image_size: int | None = None
) -> None:
    """Convert published weights to a folder of a run, unless that has been done, and record what was converted.

    Raises:
        ValueError: the run has been trained from other weights, or another process is training from them.
    """
    run, record = recipe.run.dir, target.with_name(f"{target.name}.sha256")
    digest = _hash(source) if is_main else ""
    made = f"{digest} {image_size or ''}".strip()
    if target.exists():
        recorded = made  # the main process has compared them; folders of earlier versions have no record
        if is_main and not is_model_folder(target):
            recorded = "none"  # an image tokenizer is in it
        elif is_main and record.is_file():
            recorded = record.read_text(encoding="utf-8")
        trained = bool(folders(run))
        if trained and not recorded.startswith(digest):
            raise ValueError(
                f"{option}={getattr(recipe, option)} is not what the run in {run} has been trained from: resume with "
                "that, or choose another run.dir=FOLDER"
            )
        if trained or recorded == made:  # images of another size: the checkpoint is of another architecture
            return
        try:
            lock = FileLock(run / ".lock")  # that of a run, which is held from before its first checkpoint
        except BlockingIOError as error:
            raise ValueError(
                f"{error} is training in {run} from another {option}: choose another run.dir=FOLDER"
            ) from error
        with lock:
            record.unlink(missing_ok=True)  # first: it must not be taken for that of the next folder
            shutil.rmtree(target)
    check_folder(run, "run.dir=FOLDER")
    convert(source, target, "float32", given=None if image_size is None else {"image_size": image_size})
    if is_main:
        write_text(record, made)


def _hash(source: Path) -> str:
    """Hash of the files of published weights, without their card; of large ones 256 places, as all take minutes."""
    digest = hashlib.sha256()
    for file in [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file()):
        name = file.relative_to(source)
        if name.suffix == ".md" or any(part.startswith(".") for part in name.parts):  # a hub's own notes
            continue
        size = file.stat().st_size
        digest.update(os.fsencode(name) + f"\0{size}\n".encode())
        with file.open("rb") as handle:
            for start in range(0, size, max(_BLOCK, size // _PLACES)):
                handle.seek(start)
                digest.update(handle.read(_BLOCK))
    return digest.hexdigest()


def load_initial(model: DALLE | CLIP, recipe: DALLERecipe | CLIPRecipe) -> None:
    """Load the weights of `init_from` into a model.

    A DALL-E for another grid gets position embeddings interpolated to it (`resize_positions`). A CLIP trained with
    another loss gets a fresh scale and bias.

    Raises:
        ValueError: the weights are of another architecture.
    """
    load_weights(model, initial_weights(recipe), str(_file(recipe)))
    if isinstance(model, DALLE):
        model.detect_sparse_masks()


def load_initial_unclip(model: _UnCLIPModel, recipe: PriorRecipe | DiffusionRecipe) -> None:
    """Load the weights of `init_from` into a part of an unCLIP, with the statistics that it standardizes by.

    Raises:
        ValueError: the weights are of another architecture.
    """
    assert recipe.init_from is not None
    file = _initial_folder(recipe, resolve(recipe.init_from)).path / WEIGHTS
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
    """Open the weights of `init_from`, memory-mapped, as the recipe's model has them.

    Those of a DALL-E have the positions of its grid; those of a CLIP the scale and bias of its loss.
    """
    tensors = open_tensors(_file(recipe))
    if not isinstance(recipe, CLIPRecipe):
        return resize_positions(tensors, recipe.model)
    # Only the sigmoid loss has a bias, and its scale has another meaning: neither carries over between losses
    if ("logit_bias" in tensors) != recipe.model.sigmoid:
        kept = {name: tensor for name, tensor in tensors.items() if name not in ("logit_scale", "logit_bias")}
        scale, bias = initial_scale_and_bias(recipe.model)
        return kept | {"logit_scale": scale} | ({} if bias is None else {"logit_bias": bias})
    return tensors


def _file(recipe: DALLERecipe | CLIPRecipe) -> Path:
    assert recipe.init_from is not None
    return _initial_folder(recipe, resolve(recipe.init_from)).path / WEIGHTS


def _initial_folder(recipe: _InitFromRecipe, path: Path) -> ModelFolder:
    """The model folder of the weights in `path`, or of what they were converted to; of an unCLIP that of the part."""
    folder = ModelFolder(path if is_model_folder(path) else recipe.run.dir / FOLDER)
    return (
        part_folder(folder, part_name(to_dict(recipe))) if isinstance(recipe, PriorRecipe | DiffusionRecipe) else folder
    )
