"""Image tokenizers that a run begins with: a VQGAN to go on from, perhaps with frozen codes, or a published one."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from dalle.checkpoints.hub import resolve
from dalle.checkpoints.image_codes import recorded_codes
from dalle.checkpoints.lazy_tensor import LazyTensor, Tensors
from dalle.checkpoints.model_folder import ModelFolder
from dalle.checkpoints.modules import load_weights
from dalle.checkpoints.source import is_model_folder
from dalle.config import from_dict, renamed
from dalle.image_tokenizers import ImageTokenizerConfig, check_codes
from dalle.image_tokenizers.vqgan import VQGAN
from dalle.image_tokenizers.vqgan_layers import AttentionBlock, ResidualBlock
from dalle.training.recipe import DALLERecipe

log = logging.getLogger(__name__)

FOLDER = "initial"
"""Folder of a run with what its published weights were converted to."""
_OUTPUT = "decoder.conv_out."


def image_tokenizer_folder(recipe: DALLERecipe) -> Path:
    """The model folder of a recipe's image tokenizer: itself, or what `prepare_initial` makes of it."""
    path = resolve(recipe.image_tokenizer)
    return path if is_model_folder(path) else recipe.run.dir / FOLDER / "image_tokenizer"


def check_image_tokenizer(recipe: DALLERecipe, initial: ModelFolder) -> None:
    """Say if a recipe's image tokenizer has other codes than the model drew that its run begins with."""
    place = image_tokenizer_folder(recipe)
    content = ModelFolder(place)
    if content.config.get("stage") != "image_tokenizer":
        return  # whose loader says what it is
    config = from_dict(ImageTokenizerConfig, renamed(content.config.get("model") or {}), content.origin)
    try:
        check_codes(recorded_codes(initial), config, f"image_tokenizer: {recipe.image_tokenizer}")
    except ValueError as error:  # another one is learned anew, which may be what is wanted
        log.warning("%s; what the model knows of its codes is lost", error)


def load_initial_vqgan(model: VQGAN, source: str) -> None:
    """Load the weights of a VQGAN whose decoder may be smaller: fewer blocks, less attention, fewer pixels (`patch`).

    Blocks and attention that the source lacks add zeros at first, so that the decoder draws as the source does.

    Args:
        model: the VQGAN to load into.
        source: a model folder of ours, or a hub id.

    Raises:
        ValueError: nothing is found there, it is damaged, or the architecture differs in more than this.
    """
    folder = ModelFolder(resolve(source))
    if folder.config.get("stage") != "image_tokenizer":
        raise ValueError(f"init_from: {source} is of stage {folder.config.get('stage')!r}; expected an image tokenizer")
    tensors: Tensors = folder.tensors()
    old_patch = (folder.config.get("model") or {}).get("patch", 1)
    if old_patch != model.config.patch:
        tensors = {**tensors, **_with_patch(tensors, old_patch, model.config.patch, source)}
    added = _added_layers(model, tensors)
    if added:
        log.warning("init_from: %s has a smaller decoder: %d new tensors, which add zeros at first", source, len(added))
    tensors = {**tensors, **added}
    # Afterward it is trained, and loading leaves it in evaluation mode
    load_weights(model, tensors, f"init_from: {source}").train()
    folder.check()


def _added_layers(model: VQGAN, tensors: Tensors) -> dict[str, Tensor]:
    """Weights of the decoder's residual layers that `tensors` lack: new ones, whose last convolution is zero."""
    added: dict[str, Tensor] = {}
    for name, layer in model.decoder.named_modules(prefix="decoder"):
        if not isinstance(layer, ResidualBlock | AttentionBlock):
            continue
        own = {f"{name}.{key}": value for key, value in layer.state_dict().items()}
        # A block that changes the width has a shortcut of its own and is no identity: loading says that it is missing
        if own.keys().isdisjoint(tensors) and not isinstance(getattr(layer, "nin_shortcut", None), nn.Conv2d):
            last = layer.conv2 if isinstance(layer, ResidualBlock) else layer.proj_out
            for parameter in last.parameters():
                nn.init.zeros_(parameter)
            added |= own
    return added


def _with_patch(tensors: Tensors, old: int, new: int, source: str) -> dict[str, Tensor]:
    if new % old:
        raise ValueError(f"init_from: {source} has patch {old}, which patch {new} is no multiple of")
    found = {}
    for name, value in tensors.items():
        if name.startswith(_OUTPUT):
            found[name] = enlarge_output((value() if isinstance(value, LazyTensor) else value).float(), old, new)
    return found


def enlarge_output(weight: Tensor, old: int, new: int) -> Tensor:
    """Make an output convolution draw each pixel as a square of `new // old` pixels.

    Args:
        weight: weight [3 * old², ...] or bias [3 * old²] of a convolution before a pixel shuffle by `old`.
        old: patch of the weight.
        new: patch of the result, a multiple of `old`.

    Returns:
        [3 * new², ...]
    """
    rest = weight.shape[1:]
    places = weight.view(3, old, old, *rest)  # channel, row and column within the patch
    for dim in (1, 2):
        places = places.repeat_interleave(new // old, dim)
    return places.reshape(3 * new * new, *rest).contiguous()


def _makes_codes(model: VQGAN) -> tuple[nn.Module, ...]:
    """Everything that codes depend on: encoder and codebook."""
    return model.encoder, model.quant_conv, model.quantize


def lock_codes(model: VQGAN) -> None:
    """Freeze everything that codes depend on."""
    for module in _makes_codes(model):
        module.requires_grad_(False)


@torch.no_grad()
def frozen_codes(model: VQGAN, images: Tensor) -> Tensor:
    """The codes [B, h, w] of images, without dropout, and in float32 also under autocast: either would change some."""
    training = model.training
    for module in _makes_codes(model):
        module.eval()
    try:
        with torch.autocast(images.device.type, enabled=False):
            return model.encode(images)
    finally:
        for module in _makes_codes(model):
            module.train(training)
