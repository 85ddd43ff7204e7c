"""Builds a `Painter` and its models from options; `dalle.paint` does all of it in one call. Writes no files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dalle.apps.vqgan_clip.canvas import Canvas, FourierCanvas, LatentCanvas, PixelCanvas, start_image
from dalle.apps.vqgan_clip.cutouts import Cutouts
from dalle.apps.vqgan_clip.objective import ClipObjective
from dalle.apps.vqgan_clip.optimize import Painter
from dalle.apps.vqgan_clip.options import PaintOptions
from dalle.apps.vqgan_clip.prompts import Prompt, check_weights, parse_images, parse_noise, parse_text
from dalle.apps.vqgan_clip.state import State, module_hash, restore
from dalle.checkpoints.hub import SHIPPED
from dalle.checkpoints.load import load_clip, load_image_tokenizer
from dalle.config import from_dict
from dalle.device import device_of, pick_device
from dalle.files import ROOT
from dalle.image_tokenizers import ImageTokenizer
from dalle.images.read import read_image
from dalle.images.transforms import to_image, to_mask, to_tensor
from dalle.models.clip import CLIP

TOKENIZER = ROOT / "tokenizers" / "emoji-vqgan"
CLIP_FOLDER = SHIPPED / "clip"

OnStep = Callable[[Painter, dict[str, float]], None]
"""Called after each step with the painter and the losses of the step."""


@dataclass(frozen=True)
class Painting:
    """A finished painting."""

    image: Image.Image  # RGB
    losses: list[dict[str, float]]  # of each step
    painter: Painter  # its canvas and options; `painter.image()` is the image as a tensor


def paint(
    prompt: str = "",
    *,
    device: str | torch.device = "auto",
    progress: OnStep | None = None,
    **options: Any,
) -> Painting:
    """Paint a prompt: optimize an image until CLIP finds that it fits (VQGAN+CLIP, arXiv 2204.08583).

    Args:
        prompt: what to paint, in the syntax of `PaintOptions.prompt`.
        device: "auto" takes an accelerator if there is one.
        progress: called after each step.
        options: fields of `dalle.apps.vqgan_clip.options.PaintOptions`, for example steps=100, seed=1, size="128x128".

    Raises:
        ValueError: an option is unknown or out of range, an image cannot be read, or a model cannot be loaded.
    """
    painter = load_painter(from_dict(PaintOptions, {"prompt": prompt, **options}, "paint"), device)
    history = []
    for losses in painter.run():
        history.append(losses)
        if progress is not None:
            progress(painter, losses)
    return Painting(to_image(painter.image()), history, painter)


def load_painter(options: PaintOptions, device: str | torch.device = "auto", state: State | None = None) -> Painter:
    """Load the models and images that the options name, and set up a painting.

    Raises:
        ValueError: as `paint`; or the state does not fit the options.
    """
    _phases(options, from_image=options.init is not None)  # errors before loading, which takes longer
    # A state holds what it needs of both images, so their files may be gone by then
    init = None if options.init is None or state is not None else read_image(options.init)
    mask = None if options.mask is None or state is not None else read_image(options.mask)
    device = pick_device(device)
    tokenizer = _tokenizer(options, device)
    clips = [load_clip(source, device).requires_grad_(False) for source in options.clip or (CLIP_FOLDER,)]
    return make_painter(options, tokenizer, clips, init, mask, state)


def make_painter(
    options: PaintOptions,
    tokenizer: ImageTokenizer | None,
    clips: Sequence[CLIP],
    init: Image.Image | None = None,
    mask: Image.Image | None = None,
    state: State | None = None,
) -> Painter:
    """Set up a painting with models and images that are loaded, at its beginning or where `state` was saved.

    Args:
        options: all options but those of the models and images.
        tokenizer: for the drawer vqgan, without gradients; None for the others.
        clips: at least one, without gradients.
        init: image to start from.
        mask: white where `init` is painted over.
        state: of an earlier painting with these options.

    Raises:
        ValueError: as `paint`; or the state does not fit the options.
    """
    phases = _phases(options, from_image=options.init is not None or init is not None)
    device = device_of(clips[0])
    width, height = _resolution(options, tokenizer, clips[0])
    init_tensor = None if init is None else to_tensor(init, width, height).to(device)
    canvas = _canvas(options, tokenizer, init_tensor, width, height).to(device)
    dtype = getattr(torch, options.dtype)
    objectives = [ClipObjective(clip, phases, _cutouts(options, clip), dtype) for clip in clips]
    known_image, mask_tensor = None, None
    if state is not None and state.mask is not None and state.known_image is not None:
        known_image, mask_tensor = state.known_image.to(device), state.mask.to(device)
    elif mask is not None and init is not None:
        known_image, mask_tensor = init_tensor, to_mask(mask, init, width, height).to(device)
    hashes = {} if tokenizer is None else {"image tokenizer": module_hash(tokenizer)}
    hashes |= {f"CLIP {number}": module_hash(clip) for number, clip in enumerate(clips, 1)}
    painter = Painter(canvas, objectives, options, known_image, mask_tensor, hashes)
    if state is not None:
        restore(painter, state)
    return painter


def _tokenizer(options: PaintOptions, device: torch.device) -> ImageTokenizer | None:
    """The frozen image tokenizer of a latent canvas; None for the other canvases."""
    if options.drawer == "vqgan":
        return load_image_tokenizer(options.image_tokenizer or TOKENIZER, device).requires_grad_(False)
    if options.image_tokenizer is not None:
        raise ValueError(f"image_tokenizer is given, but the drawer {options.drawer} uses none: leave one of them out")
    return None


def _phases(options: PaintOptions, from_image: bool) -> list[list[Prompt]]:
    """Prompts of each phase: texts change from phase to phase, image and noise prompts belong to all of them."""
    constant = [*parse_images(options.image_prompt), *parse_noise(options.noise_prompt)]
    texts = parse_text(options.prompt) if options.prompt.strip() or not constant else [[]]
    phases = [[*phase, *constant] for phase in texts]
    check_weights(phases, from_image)
    return phases


def _resolution(options: PaintOptions, tokenizer: ImageTokenizer | None, clip: CLIP) -> tuple[int, int]:
    """Width and height of the painting in pixels."""
    native = clip.config.image_size if tokenizer is None else tokenizer.image_size
    width, height = options.resolution or (native, native)
    factor = 1 if tokenizer is None else tokenizer.factor
    if width % factor or height % factor:
        nearest = [max(factor, round(side / factor) * factor) for side in (width, height)]
        raise ValueError(
            f"size is {width}x{height}: this image tokenizer paints multiples of {factor}; "
            f"give {nearest[0]}x{nearest[1]}"
        )
    return width, height


def _canvas(
    options: PaintOptions, tokenizer: ImageTokenizer | None, init: Tensor | None, width: int, height: int
) -> Canvas:
    """The canvas, set to `init` [1, 3, H, W] or, without one, to the start that the options name."""
    generator = torch.Generator().manual_seed(options.seed)
    if tokenizer is None:
        image = start_image(options.start, height, width, generator) if init is None else init
        return PixelCanvas(image) if options.drawer == "pixels" else FourierCanvas(image)
    device = tokenizer.last_layer.device
    if init is None and options.start == "codes":
        shape = (1, height // tokenizer.factor, width // tokenizer.factor)
        codes = torch.randint(tokenizer.codebook_size, shape, generator=generator).to(device)  # [1, h, w]
    else:
        image = start_image(options.start, height, width, generator) if init is None else init
        codes = tokenizer.encode(image.to(device))  # [1, h, w]
    return LatentCanvas(tokenizer, tokenizer.embed_codes(codes).float(), options.tile)


def _cutouts(options: PaintOptions, clip: CLIP) -> Cutouts:
    return Cutouts(
        clip.config.image_size,
        options.num_cutouts,
        options.cutout,
        options.cut_min,
        options.cut_power,
        options.augments,
        options.augment_strength,
    )
