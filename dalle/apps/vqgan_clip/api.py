"""From options to a painter with its models, and dalle.paint: all of it in one call. Writes no files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dalle.apps.vqgan_clip.canvas import Canvas, FourierCanvas, LatentCanvas, PixelCanvas, start_image
from dalle.apps.vqgan_clip.cutouts import Cutouts
from dalle.apps.vqgan_clip.objective import Critic
from dalle.apps.vqgan_clip.optimize import Painter
from dalle.apps.vqgan_clip.options import PaintOptions
from dalle.apps.vqgan_clip.prompts import Prompt, check_weights, parse_images, parse_noise, parse_text
from dalle.apps.vqgan_clip.state import State, fingerprint, restore
from dalle.checkpoints.hub import SHIPPED
from dalle.checkpoints.load import load_clip, load_image_tokenizer
from dalle.config import from_dict
from dalle.device import pick_device
from dalle.files import ROOT
from dalle.image_tokenizers import ImageTokenizer
from dalle.images.read import read_image
from dalle.images.transforms import to_image, to_mask, to_tensor
from dalle.models.clip import CLIP

TOKENIZER = ROOT / "tokenizers" / "emoji-vqgan"
CLIP_FOLDER = SHIPPED / "clip"

Progress = Callable[[Painter, dict[str, float]], None]
"""Called after each step with the painter and the losses of the step."""


@dataclass(frozen=True)
class Painted:
    """A finished painting."""

    image: Image.Image  # RGB
    losses: list[dict[str, float]]  # of each step
    painter: Painter  # its drawer and options; `painter.image()` is the image as a tensor


def paint(
    prompt: str = "",
    *,
    device: str | torch.device = "auto",
    progress: Progress | None = None,
    **options: Any,
) -> Painted:
    """Paint a prompt: optimise an image until CLIP finds the prompt in it (VQGAN+CLIP, arXiv 2204.08583).

    Args:
        prompt: what to paint, as `PaintOptions.prompt` tells.
        device: "auto" takes an accelerator if there is one.
        progress: called after each step.
        options: fields of `dalle.apps.vqgan_clip.options.PaintOptions`, for example steps=100, seed=1, size="128x128".

    Raises:
        ValueError: an option is unknown or out of range, an image cannot be read, or a model cannot be loaded.
    """
    painter = begin(from_dict(PaintOptions, {"prompt": prompt, **options}, "paint"), device)
    losses = []
    for figures in painter.run():
        losses.append(figures)
        if progress is not None:
            progress(painter, figures)
    return Painted(to_image(painter.image()), losses, painter)


def begin(options: PaintOptions, device: str | torch.device = "auto", state: State | None = None) -> Painter:
    """Load what a painting needs, and set it up; from a state, as far as that was.

    Raises:
        ValueError: as `paint`; or the state does not fit.
    """
    phases = _phases(options, from_image=options.init is not None)
    init = None if options.init is None or state is not None else read_image(options.init)
    mask = None if options.mask is None or state is not None else read_image(options.mask)
    place = pick_device(device)
    tokenizer = None
    if options.drawer == "vqgan":
        tokenizer = load_image_tokenizer(options.image_tokenizer or TOKENIZER, place).requires_grad_(False)
    elif options.image_tokenizer is not None:
        raise ValueError(f"image_tokenizer is given, but the drawer {options.drawer} uses none: leave one of them out")
    clips = [load_clip(source, place).requires_grad_(False) for source in options.clip or (CLIP_FOLDER,)]
    width, height = _extent(options, tokenizer, clips[0])
    kept = None if init is None else to_tensor(init, width, height).to(place)
    drawer = _drawer(options, tokenizer, kept, width, height).to(place)
    critics = [Critic(clip, phases, _cutouts(options, clip), getattr(torch, options.dtype)) for clip in clips]
    white = None if mask is None or init is None else to_mask(mask, init, width, height).to(place)
    if state is not None and "mask" in state.tensors:
        white, kept = state.tensors["mask"].to(place), state.tensors["kept"].to(place)
    models = {} if tokenizer is None else {"image tokenizer": fingerprint(tokenizer)}
    models |= {f"CLIP {number}": fingerprint(clip) for number, clip in enumerate(clips, 1)}
    painter = Painter(drawer, critics, options, None if white is None else kept, white, models)
    if state is not None:
        restore(painter, state)
    return painter


def _phases(options: PaintOptions, from_image: bool) -> list[list[Prompt]]:
    """All prompts, phase by phase: images and noise hold in each of them."""
    always = [*parse_images(options.image_prompt), *parse_noise(options.noise_prompt)]
    texts = parse_text(options.prompt) if options.prompt.strip() or not always else [[]]
    phases = [[*phase, *always] for phase in texts]
    check_weights(phases, from_image)
    return phases


def _extent(options: PaintOptions, tokenizer: ImageTokenizer | None, clip: CLIP) -> tuple[int, int]:
    """Width and height of the painting."""
    native = clip.config.image_size if tokenizer is None else tokenizer.image_size
    width, height = options.extent or (native, native)
    factor = 1 if tokenizer is None else tokenizer.factor
    if width % factor or height % factor:
        near = [max(factor, round(side / factor) * factor) for side in (width, height)]
        raise ValueError(
            f"size is {width}x{height}: this image tokenizer paints multiples of {factor}; give {near[0]}x{near[1]}"
        )
    return width, height


def _drawer(
    options: PaintOptions, tokenizer: ImageTokenizer | None, init: Tensor | None, width: int, height: int
) -> Canvas:
    """What is optimised, set to the start."""
    generator = torch.Generator().manual_seed(options.seed)
    if tokenizer is None:
        image = start_image(options.start, height, width, generator) if init is None else init
        return PixelCanvas(image) if options.drawer == "pixels" else FourierCanvas(image)
    device = tokenizer.last_layer.device
    if init is None and options.start == "codes":
        shape = (1, height // tokenizer.factor, width // tokenizer.factor)
        codes = torch.randint(tokenizer.codebook_size, shape, generator=generator).to(device)
    else:
        image = start_image(options.start, height, width, generator) if init is None else init
        codes = tokenizer.encode(image.to(device))
    return LatentCanvas(tokenizer, tokenizer.embed_codes(codes).float(), options.tile)


def _cutouts(options: PaintOptions, clip: CLIP) -> Cutouts:
    side = clip.config.image_size
    return Cutouts(
        side,
        options.num_cutouts,
        options.cutout,
        options.cut_min,
        options.cut_power,
        options.augments,
        options.augment_strength,
    )
