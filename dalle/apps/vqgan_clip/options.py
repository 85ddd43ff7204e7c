"""The options of `dalle paint` and `dalle.paint`. Does not import torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from dalle.config import config
from dalle.config.ranges import Decay, NonNegativeInt, PositiveInt, Range, Seed, Weight

PRESETS = {"draft": (100, 8), "good": (200, 16), "best": (400, 32)}  # steps, cutouts; times in docs/paint.md
AUGMENTS = ("training", "affine", "perspective", "jitter", "sharpness", "noise", "erasing")
MAX_PIXELS = 2**26


@config
class PaintOptions:
    """Options of VQGAN+CLIP; docs/paint.md explains their effects."""

    prompt: str = ""
    """What to paint: "TEXT:WEIGHT | TEXT:WEIGHT ^ TEXT". | separates texts of one phase, each with a weight (1 if not
    given, negative to avoid it); ^ separates phases, which follow each other."""
    preset: Literal["draft", "good", "best"] = "good"
    """Number of steps and cutouts, where these are not given: draft 100 and 8, good 200 and 16, best 400 and 32."""
    steps: PositiveInt | None = None
    """Optimizer steps; the preset's if not given."""
    cutouts: Annotated[int, Range(1, ceiling=2**20)] | None = None
    """Cutouts of the image per step and CLIP; the preset's if not given."""
    seed: Seed = 0
    """The same seed and options paint the same image."""
    size: str | None = None
    """WIDTHxHEIGHT in pixels, multiples of the tokenizer's downsampling factor; the tokenizer's own size if not
    given."""
    drawer: Literal["vqgan", "pixels", "fft"] = "vqgan"
    """What is optimized: vqgan, the latents of an image tokenizer (of any kind, a dVAE too); pixels; or fft, a Fourier
    spectrum."""
    image_tokenizer: str | None = None
    """Folder, file or hub id of the image tokenizer; the built-in emoji VQGAN if not given."""
    clip: tuple[str, ...] = ()
    """Folder, file or hub id of a CLIP; the built-in emoji CLIP if not given; the losses of several are averaged."""
    image_prompt: tuple[str, ...] = ()
    """FILE:WEIGHT, an image as a prompt: its CLIP embedding is a further target; may be repeated."""
    noise_prompt: tuple[str, ...] = ()
    """SEED:WEIGHT, a random CLIP embedding as a further target, for variety; may be repeated."""
    change_every: PositiveInt | None = None
    """Steps per phase of the prompt (separated by ^), cyclically; if not given, all phases get equally many."""
    init: Path | None = None
    """Image to start from; it is cropped to the painting's aspect ratio and resized."""
    start: Literal["codes", "noise", "gradient", "gray", "white"] = "white"
    """What to start from without --init: random codes (a smooth random image for pixels and fft), colored noise, a
    gradient of random colors, gray, or white, the background of emoji (VQGAN-CLIP starts from codes)."""
    init_weight: Weight = 0.0
    """Weight of the squared distance of the optimized values from their start."""
    init_decay: NonNegativeInt = 50
    """Steps in which init_weight halves; 0: it is constant."""
    mask: Path | None = None
    """Image of the size of --init, white where it is painted over; the rest of --init stays."""
    optimizer: Literal["adam", "adamw", "adamax", "adagrad", "nadam", "radam", "rmsprop"] = "adam"
    """Optimizer of torch.optim."""
    lr: Annotated[float, Range(0, above=True, ceiling=1000)] | None = None
    """Learning rate; if not given 0.02 for pixels, 0.05 for fft, and for vqgan 0.4 times the RMS of its codebook."""
    average: Decay = 0.95
    """EMA decay of the optimized values; the image is rendered from the average; 0: no averaging."""
    cutout: tuple[Literal["random", "pool", "whole"], ...] = ("random",)
    """Kind of cutouts: random, squares of random size and position; or the whole image resized to a square, by
    bilinear interpolation (whole) or average and max pooling (pool); may be repeated to mix kinds equally."""
    cut_min: Annotated[float, Range(0, 1, above=True)] = 1.0
    """Side of the smallest random cutout, as a fraction of the shorter side (augment=training zooms in by itself)."""
    cut_power: Annotated[float, Range(0, above=True, ceiling=1000)] = 1.0
    """Exponent of the distribution of sizes: above 1, small cutouts are more frequent."""
    augment: str = "training"
    """Augmentations of cutouts, separated by commas: training (those of CLIP's own training, where its recipe sets
    `augment`); affine, perspective, jitter, sharpness, noise, erasing (VQGAN-CLIP's, by kornia); or none."""
    augment_strength: Annotated[float, Range(0, above=True, ceiling=1000)] = 1.0
    """Strength of the augmentations; 1 is that of VQGAN-CLIP, or of CLIP's training, where 1 is the maximum."""
    cutout_batch: PositiveInt | None = None
    """Cutouts in one forward pass of CLIP, to save memory; all if not given. The image does not depend on it."""
    tv: Weight = 0.0
    """Weight of the total variation loss, which smooths the image."""
    saturation: Annotated[float, Range(-(10**6), 10**6)] = 0.0
    """Weight of the saturation: positive for more colorful images, negative for less."""
    tile: Annotated[int, Range(1, ceiling=65536)] = 512
    """Side in pixels of the overlapping tiles in which larger images are decoded."""
    frame_every: PositiveInt = 1
    """Steps per frame of the video."""
    zoom: Annotated[float, Range(0, above=True, ceiling=1000)] = 1.0
    """Zoom factor per frame, for example 1.02."""
    rotate: Annotated[float, Range(-(10**6), 10**6, hint="degrees")] = 0.0
    """Rotation per frame, in degrees, counterclockwise."""
    shift_x: Annotated[float, Range(-(10**6), 10**6, hint="pixels")] = 0.0
    """Shift to the right per frame, in pixels."""
    shift_y: Annotated[float, Range(-(10**6), 10**6, hint="pixels")] = 0.0
    """Shift downward per frame, in pixels."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype of CLIP."""

    def __post_init__(self) -> None:
        max_strength = 1 if "training" in self.augments else 5
        if self.augment_strength > max_strength:
            raise ValueError(
                f"augment_strength is {self.augment_strength}: with augment={self.augment} give {max_strength} at most"
            )
        if not self.cutout:
            raise ValueError("cutout is empty: give random, pool or whole")
        if self.mask is not None and self.init is None:
            raise ValueError("mask needs init, the image that it is a mask of: give both")
        self.resolution  # noqa: B018, it raises ValueError if `size` is malformed

    @property
    def num_steps(self) -> int:
        """Number of steps: as given, else that of the preset."""
        return PRESETS[self.preset][0] if self.steps is None else self.steps

    @property
    def num_cutouts(self) -> int:
        """Number of cutouts per step: as given, else that of the preset."""
        return PRESETS[self.preset][1] if self.cutouts is None else self.cutouts

    @property
    def augments(self) -> tuple[str, ...]:
        """Names of the augmentations, in the order in which they are applied."""
        names = [] if self.augment == "none" else [name.strip() for name in self.augment.split(",")]
        for name in names:
            if name not in AUGMENTS:
                raise ValueError(f"augment has {name!r}: choose from {', '.join(AUGMENTS)}, or none")
        return tuple(name for name in AUGMENTS if name in names)

    @property
    def resolution(self) -> tuple[int, int] | None:
        """Width and height in pixels; None: the tokenizer's own."""
        if self.size is None:
            return None
        match = re.fullmatch(r"(\d{1,6})x(\d{1,6})", self.size)
        if match is None:
            raise ValueError(f"size is {self.size!r}: give WIDTHxHEIGHT in pixels, for example 256x256")
        width, height = int(match[1]), int(match[2])
        if not 0 < width * height <= MAX_PIXELS:
            raise ValueError(f"size is {self.size}: give from 1 to {MAX_PIXELS:,} pixels in all")
        return width, height

    @property
    def has_motion(self) -> bool:
        """Whether the camera moves from frame to frame."""
        return (self.zoom, self.rotate, self.shift_x, self.shift_y) != (1, 0, 0, 0)
