"""The options of `sample.py`, and the files of one run of it: PNGs, scores.json, grid.png."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dalle import __version__
from dalle.cli.outputs import named, new_folder, slug
from dalle.cli.parser import CommandLine, add_options
from dalle.config import apply_overrides, config, descriptions
from dalle.files import write_text
from dalle.generation.options import SamplingConfig, UnCLIPOptions

if TYPE_CHECKING:  # torch takes a second to import: not for --help
    from dalle.pipeline import Result

_DESCRIPTION = 'Draw images for prompts: python sample.py "a red heart, 3d style" --n 16 --keep 4 --seed 7'
_GIVEN = ("family", "heads", "convention", "grid")


@config
class SampleConfig:
    prompts: list[str]
    """What to draw, in any language that the model was trained on; "" draws what comes without a caption."""
    n: int = 4
    """Candidates to draw for each prompt."""
    keep: int | None = None
    """How many of them to keep, the best by CLIP; all if not given."""
    seed: int = 0
    """Seed of the first candidate; candidate i has seed + i, and is the same image if drawn alone with it."""
    sampling: dict[str, Any] = field(default_factory=dict)
    """Options of `SamplingConfig`; the model's own where not given."""
    diffusion: dict[str, Any] = field(default_factory=dict)
    """Options of `UnCLIPOptions`, of an unCLIP; the model's own where not given."""
    image: Path | None = None
    """Image to go on from, with --keep-rows or --mask; its middle square is used."""
    keep_rows: float | None = None
    """Rows of codes to keep from the top of --image: below 1 a fraction of them, else a whole number."""
    mask: Path | None = None
    """Image of the size of --image, white where it is drawn anew."""
    model: str | None = None
    """Folder or file of the model (or a hub id), ours or as published; the one that ships with the repository if not
    given."""
    prior: str | None = None
    """Prior of an unCLIP in place of its own: a folder, or a hub id."""
    image_tokenizer: str | None = None
    """Image tokenizer of a published model whose files do not hold it."""
    text_tokenizer: str | None = None
    """Text tokenizer of a published model whose files do not hold it."""
    text_encoder: str | None = None
    """T5 encoder of a published model that reads its features; its own (google/flan-t5-xl) if not given."""
    given: tuple[str, ...] = ()
    """What published files do not tell: family, heads, convention or grid (docs/checkpoints.md); may be repeated."""
    clip: str | None = None
    """Folder or file of the CLIP that chooses (or a hub id), ours or as published; the model's own if not given."""
    out: Path = Path("outputs")
    """Folder in which each run makes a folder of its own."""
    grid: bool = True
    """Write grid.png, all kept images with their prompts."""
    device: str = "auto"
    """auto takes an accelerator if there is one; else cpu, cuda, cuda:1, mps, ..."""
    dtype: Literal["float32", "bfloat16", "float16", "int8"] = "float32"
    """Arithmetic of the transformer; int8 keeps its weights in 8 bits and computes in float32, on a CPU."""
    window: int = 1
    """Codes guessed and checked in one step: 16 halves the steps of one candidate at a time. The images do not depend
    on it."""
    compiled: bool = False
    """On a GPU: have torch.compile make the steps faster, which takes a minute or so first."""
    batch_size: int | None = None
    """Candidates at a time; as many as fit the memory if not given. The images do not depend on it."""
    max_memory: str | None = None
    """What a batch may take beside the weights, for example 2GB; half of the free memory if not given."""


def command_line(program: str = "sample.py") -> argparse.ArgumentParser:
    """Command line of SampleConfig's fields: `prompts` by position, each other one as an option of its name."""
    parser = CommandLine(program, description=_DESCRIPTION)
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", help=descriptions(SampleConfig)["prompts"])
    add_options(parser, SampleConfig, skip=("prompts", "sampling", "diffusion"))
    add_options(parser, SamplingConfig, default="the model's own")
    add_options(parser, UnCLIPOptions, default="the model's own")
    parser.add_argument("--print-config", action="store_true", help="print all options as YAML and draw nothing")
    return parser


def published_options(settings: SampleConfig) -> dict[str, Any]:
    """What published files do not tell."""
    given = apply_overrides({}, list(settings.given))
    for name in given:
        if name not in _GIVEN:
            raise ValueError(f"--given {name}: nothing of that name can be given; known here: {', '.join(_GIVEN)}")
    return given


def check_unclip(settings: SampleConfig) -> None:
    """Refuse options that are for models that sample tokens."""
    names = ("keep_rows", "image_tokenizer", "text_tokenizer", "text_encoder", "max_memory", "batch_size")
    for name in names:
        if getattr(settings, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} is for models that sample tokens, not for an unCLIP")
    if settings.window != 1 or settings.compiled:
        raise ValueError("--window and --compiled are for models that sample tokens, not for an unCLIP")
    if settings.dtype == "int8":
        raise ValueError("--dtype int8 is for models that sample tokens: give float32 or bfloat16")


class SampleFiles:
    """The files of one run: a PNG for each kept image, scores.json, grid.png; in a folder that is new."""

    def __init__(self, settings: SampleConfig):
        self.settings = settings
        self.folder: Path | None = None  # made with the first image, so that an error leaves no empty folder
        self.model_hash = ""
        self.options = recorded_options(settings)
        self.steps = 0
        self.results: list[Result] = []
        self.images: list[dict[str, Any]] = []

    def add(self, result: Result) -> None:
        """Write the images of one prompt."""
        from dalle.images.png import write_png

        if self.folder is None:
            self.folder = new_folder(self.settings.out, f"{slug(self.settings.prompts[0])}-{self.settings.seed}")
        self.results.append(result)
        for rank, (image, seed) in enumerate(zip(result.images, result.seeds, strict=True)):
            name = f"{len(self.results):02d}-{rank + 1:02d}-seed{seed}.png"
            score = None if result.scores is None else result.scores[rank]
            texts = {
                "prompt": result.prompt,
                "seed": str(seed),
                "options": json.dumps(self.options, ensure_ascii=False),
                "model": self.model_hash,
                "Software": f"dalle {__version__}",
            }
            write_png(image, self.folder / name, texts)
            self.images.append({"file": name, "prompt": result.prompt, "seed": seed, "score": score})
        content = {
            "model": self.model_hash,
            "options": self.options,
            "steps": self.steps,
            "images": self.images,
        }
        write_text(self.folder / "scores.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def finish(self) -> Path:
        """Write the grid, if it is wanted. Returns where to look."""
        from dalle.images.grid import labeled_grid
        from dalle.images.png import write_png

        assert self.folder is not None
        if not self.settings.grid:
            return self.folder
        rows = []
        for result in self.results:
            scores = [""] * len(result.seeds) if result.scores is None else [f"  {s:.3f}" for s in result.scores]
            captions = [f"seed {seed}{score}" for seed, score in zip(result.seeds, scores, strict=True)]
            rows.append((result.prompt, result.images, captions))
        write_png(labeled_grid(rows), self.folder / "grid.png", {"Software": f"dalle {__version__}"})
        return self.folder / "grid.png"


def recorded_options(settings: SampleConfig) -> dict[str, Any]:
    """What, beside prompt, seed and the model's hash, decides on an image."""
    names = (
        "model",
        "image_tokenizer",
        "text_tokenizer",
        "text_encoder",
        "given",
        "keep_rows",
        "dtype",
    )
    options = {name: getattr(settings, name) for name in names} | settings.sampling | settings.diffusion
    options |= {} if settings.prior is None else {"prior": settings.prior}
    for name, file in (("image", settings.image), ("mask", settings.mask)):
        if file is not None and file.is_file():
            options[name] = named(file)
    return options


def progress_meter(run: SampleFiles, bar: Any, groups: float) -> Callable[[int, int], None]:
    """Progress of one group of prompts on a bar that spans `groups` of this size; the run counts the steps."""
    before = bar.n

    def progress(done: int, total: int) -> None:
        bar.total = round(total * groups)
        bar.update(before + done - bar.n)
        run.steps += 1

    return progress
