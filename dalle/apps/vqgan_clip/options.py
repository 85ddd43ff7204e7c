"""What a painting is made with: the options of `dalle paint` and `dalle.paint`. Brings in no torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from dalle.config import config
from dalle.config.ranges import Decay, NonNegativeInt, PositiveInt, Range, Seed, Weight

PRESETS = {"draft": (100, 8), "good": (200, 16), "best": (400, 32)}  # steps, cutouts; times in docs/paint.md
AUGMENTS = ("training", "affine", "perspective", "jitter", "sharpness", "noise", "erasing")
LARGEST = 2**26  # pixels of an image


@config
class PaintOptions:
    """Options of VQGAN+CLIP; docs/paint.md explains their effects."""

    prompt: str = ""
    """What to paint: "TEXT:WEIGHT | TEXT:WEIGHT ^ TEXT", parts with weights (1 if not given, below 0 to keep away
    from), phases that follow each other between ^."""
    preset: Literal["draft", "good", "best"] = "good"
    """How much work goes into it: steps and cutouts where these are not given."""
    steps: PositiveInt | None = None
    """Steps; the preset's if not given."""
    cutouts: Annotated[int, Range(1, ceiling=2**20)] | None = None
    """Cutouts of the image that each CLIP looks at in a step; the preset's if not given."""
    seed: Seed = 0
    """The same seed and options paint the same image."""
    size: str | None = None
    """WIDTHxHEIGHT in pixels, multiples of the tokenizer's factor; what the tokenizer was made for if not given."""
    drawer: Literal["vqgan", "pixels", "fft"] = "vqgan"
    """What is optimised: the vectors of an image tokenizer's codes (a dVAE's too), pixels, or a Fourier spectrum."""
    image_tokenizer: str | None = None
    """Folder, file or hub id of the image tokenizer; the emoji VQGAN that ships if not given."""
    clip: tuple[str, ...] = ()
    """Folder, file or hub id of the CLIP; the emoji CLIP that ships if not given; several look together."""
    image_prompt: tuple[str, ...] = ()
    """FILE:WEIGHT, an image that the painting shall resemble to CLIP; may be repeated."""
    noise_prompt: tuple[str, ...] = ()
    """SEED:WEIGHT, a random direction to lean to; may be repeated."""
    change_every: PositiveInt | None = None
    """Steps after which the next of the prompts between ^ holds; all for the same time if not given."""
    init: Path | None = None
    """Image to start from; it is cut to the painting's shape and resized."""
    start: Literal["codes", "noise", "gradient", "grey", "white"] = "white"
    """What to start from without --init: random codes (a smooth random image for the other drawers), coloured noise,
    a gradient of random colours, or one tone (the emoji are on white; VQGAN-CLIP starts from codes)."""
    init_weight: Weight = 0.0
    """Pull back towards the start."""
    init_decay: NonNegativeInt = 50
    """Steps in which that pull halves; 0: it stays."""
    mask: Path | None = None
    """Image of the size of --init, white where it is painted; all else stays as it is."""
    optimizer: Literal["adam", "adamw", "adamax", "adagrad", "nadam", "radam", "rmsprop"] = "adam"
    """Of torch.optim."""
    lr: Annotated[float, Range(0, above=True, ceiling=1000)] | None = None
    """Learning rate; if not given 0.02 for pixels, 0.05 for fft, and for vqgan a share of the size of its codes."""
    average: Decay = 0.95
    """Moving average of what is optimised, which is what the image shows; 0: none."""
    cutout: tuple[Literal["random", "pool", "whole"], ...] = ("random",)
    """Kinds of cutouts, which share their number: squares of random size and place, or all of the image squeezed to
    a square by means and maxima (pool) or by means (whole); may be repeated."""
    cut_min: Annotated[float, Range(0, 1, above=True)] = 1.0
    """Smallest random cutout, as a share of the shorter side; "training" enlarges by itself."""
    cut_power: Annotated[float, Range(0, above=True, ceiling=1000)] = 1.0
    """Above 1: smaller cutouts more often."""
    augment: str = "training"
    """What is done to cutouts, by commas: training (as CLIP's images are changed when it is trained with `augment`),
    affine, perspective, jitter, sharpness, noise, erasing (by kornia, as in VQGAN-CLIP); or none."""
    augment_strength: Annotated[float, Range(0, above=True, ceiling=1000)] = 1.0
    """Strength of these changes; 1 is that of training, which may not be exceeded, or of VQGAN-CLIP."""
    cutout_batch: PositiveInt | None = None
    """Cutouts that CLIP sees at a time, to save memory; all if not given. The image does not depend on it."""
    tv: Weight = 0.0
    """Weight of the total variation: smooths."""
    saturation: Annotated[float, Range(-(10**6), 10**6)] = 0.0
    """Weight of the saturation: above 0 more colourful, below 0 less."""
    tile: Annotated[int, Range(1, ceiling=65536)] = 512
    """Larger images than this many pixels a side are decoded in overlapping tiles."""
    frame_every: PositiveInt = 1
    """Steps from one frame of the video to the next."""
    zoom: Annotated[float, Range(0, above=True, ceiling=1000)] = 1.0
    """Enlargement from frame to frame, for example 1.02."""
    rotate: Annotated[float, Range(-(10**6), 10**6, hint="degrees")] = 0.0
    """Turn from frame to frame, in degrees, counter-clockwise."""
    shift_x: Annotated[float, Range(-(10**6), 10**6, hint="pixels")] = 0.0
    """Shift to the right from frame to frame, in pixels."""
    shift_y: Annotated[float, Range(-(10**6), 10**6, hint="pixels")] = 0.0
    """Shift downwards from frame to frame, in pixels."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of CLIP."""

    def __post_init__(self) -> None:
        strongest = 1 if "training" in self.augments else 5
        if self.augment_strength > strongest:
            raise ValueError(
                f"augment_strength is {self.augment_strength}: with augment={self.augment} give {strongest} at most"
            )
        if not self.cutout:
            raise ValueError("cutout is empty: give random, pool or whole")
        if self.mask is not None and self.init is None:
            raise ValueError("mask needs init: the image of which something stays")
        self.extent  # noqa: B018

    @property
    def num_steps(self) -> int:
        """Steps: as given, else those of the preset."""
        return PRESETS[self.preset][0] if self.steps is None else self.steps

    @property
    def num_cutouts(self) -> int:
        """Cutouts a step: as given, else those of the preset."""
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
    def extent(self) -> tuple[int, int] | None:
        """Width and height; None: the tokenizer's own."""
        if self.size is None:
            return None
        found = re.fullmatch(r"(\d{1,6})x(\d{1,6})", self.size)
        if found is None:
            raise ValueError(f"size is {self.size!r}: give WIDTHxHEIGHT in pixels, for example 256x256")
        width, height = int(found[1]), int(found[2])
        if not 0 < width * height <= LARGEST:
            raise ValueError(f"size is {self.size}: give from 1 to {LARGEST:,} pixels in all")
        return width, height

    @property
    def moves(self) -> bool:
        """Whether the image is moved from frame to frame."""
        return (self.zoom, self.rotate, self.shift_x, self.shift_y) != (1, 0, 0, 0)
