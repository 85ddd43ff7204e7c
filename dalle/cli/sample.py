"""Options and output files (PNGs, scores.json, grid.png) of `sample.py`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from dalle import __version__
from dalle.cli.outputs import ScoresFile, file_record, new_folder, slug
from dalle.cli.parser import CommandLine, add_options, parse_size
from dalle.cli.sample_from import options_from
from dalle.cli.streams import utf8_argument
from dalle.config import apply_overrides, config, descriptions, from_dict
from dalle.config.ranges import PositiveInt, Range, Seed
from dalle.generation.options import SamplingConfig, UnCLIPOptions

if TYPE_CHECKING:  # torch takes a second to import: not for --help
    from dalle.images.grid import Row
    from dalle.pipelines.result import Result

_DESCRIPTION = 'Generate images for prompts: python sample.py "a red heart, 3d style" --n 16 --keep 4 --seed 7'
_GIVEN = ("family", "heads", "convention", "grid", "roles")


@config
class SampleConfig:
    """Options of `sample.py`."""

    prompts: list[str] = field(default_factory=list)
    """Prompts, in any language that the model was trained on; "" generates images without a caption."""
    prompts_file: Path | None = None
    """File of prompts in place of PROMPT: .txt, .csv, .jsonl or .parquet, each perhaps with its own seed, n, keep and
    sampling options. Processes of torchrun share them; the same command continues an interrupted run."""
    from_image: Path | None = None
    """PNG of an earlier run, whose prompt, seed and options these are (`--from`)."""
    n: Annotated[int, Range(1, ceiling=2**20)] = 4
    """Number of candidates per prompt."""
    keep: PositiveInt | None = None
    """Number of candidates to keep, the best by CLIP; all if not given."""
    distinct: bool = True
    """Among those kept, skip near-duplicates as long as there are other candidates."""
    seed: Seed = 0
    """Seed of the first candidate; candidate i has seed + i and is the same image if generated alone."""
    sampling: dict[str, Any] = field(default_factory=dict)
    """Options of `SamplingConfig`; the model's own where not given."""
    diffusion: dict[str, Any] = field(default_factory=dict)
    """Options of `UnCLIPOptions`, of an unCLIP; the model's own where not given."""
    negative: str | None = None
    """Negative prompt, which guidance leads away from, of a model that takes one (Emu3); its own if not given."""
    image: Path | None = None
    """Image to complete or edit, with --keep-rows or --mask; its center square is used."""
    keep_rows: Annotated[float, Range(0, ceiling=10**6)] | None = None
    """Rows of codes to keep from the top of --image: below 1 a fraction of them, else a whole number."""
    mask: Path | None = None
    """Mask of the size of --image, white where new content is generated (inpainting)."""
    model: str | None = None
    """Model folder, published checkpoint, or hub id; the built-in model if not given."""
    prior: str | None = None
    """Prior of an unCLIP in place of its own: a folder, or a hub id."""
    image_tokenizer: str | None = None
    """Image tokenizer of a published model whose files do not contain it."""
    text_tokenizer: str | None = None
    """Text tokenizer of a published model whose files do not contain it."""
    text_encoder: str | None = None
    """T5 encoder of a published model with text features; google/flan-t5-xl if not given."""
    given: tuple[str, ...] = ()
    """Facts that published files do not contain: family, heads, convention, grid or roles
    (docs/checkpoints.md); may be repeated."""
    clip: str | None = None
    """CLIP for reranking: model folder, published checkpoint, or hub id; the model's own if not given."""
    out: Path = Path("outputs")
    """Folder in which each run creates a new folder; with --prompts-file the folder of the run itself."""
    write: Literal["folders", "shards", "parquet"] = "folders"
    """With --prompts-file, write PNG files in folders, WebDataset shards, or Parquet files."""
    shard_size: PositiveInt | None = None
    """With --prompts-file, prompts per folder or file, which are written whole; about 256 candidates if not given."""
    grid: bool = True
    """Write grid.png, all kept images with their prompts."""
    device: str = "auto"
    """auto takes an accelerator if there is one; else cpu, cuda, cuda:1, mps, ..."""
    dtype: Literal["float32", "bfloat16", "float16", "int8"] = "float32"
    """Precision of the transformer; int8 quantizes weights to 8 bits while it loads them, to save memory, and
    computes in float32, on a CPU: faster than float32 for few candidates of a large model only."""
    window: PositiveInt = 1
    """Jacobi decoding: number of codes guessed and verified per step. 16 halves the steps when one candidate is
    generated at a time. Does not change the images."""
    compiled: bool = False
    """On a GPU, compile the decode step with torch.compile, which takes about a minute at first."""
    batch_size: PositiveInt | None = None
    """Candidates per batch; as many as fit in memory if not given. Does not change the images."""
    max_memory: str | None = None
    """Memory limit of a batch in addition to the weights, for example 2GB; half of the free memory if not given."""


def command_line(program: str = "sample.py") -> argparse.ArgumentParser:
    """Build the parser: `prompts` are positional, every other field of SampleConfig is an option."""
    parser = CommandLine(program, description=_DESCRIPTION)
    parser.add_argument(
        "prompts", nargs="*", type=utf8_argument, metavar="PROMPT", help=descriptions(SampleConfig)["prompts"]
    )
    text = "PNG of an earlier run: its prompt, seed and options, and those that are given, changed"
    parser.add_argument("--from", dest="from_image", type=Path, metavar="PNG", help=text, default=argparse.SUPPRESS)
    add_options(parser, SampleConfig, skip=("prompts", "from_image", "sampling", "diffusion"))
    add_options(parser, SamplingConfig, default="the model's own")
    add_options(parser, UnCLIPOptions, default="the model's own")
    parser.add_argument("--print-config", action="store_true", help="print all options as YAML and exit")
    return parser


def parse(argv: Sequence[str] | None, program: str) -> tuple[SampleConfig, bool]:
    """Parse the command line; returns the options, and whether to print them and exit.

    Raises:
        ValueError: an option is out of range, or options do not go together.
    """
    values = vars(command_line(program).parse_args(argv))
    show = values.pop("print_config")
    for name, schema in (("sampling", SamplingConfig), ("diffusion", UnCLIPOptions)):
        values[name] = {field.name: values.pop(field.name) for field in fields(schema) if field.name in values}
    if "from_image" in values:
        values = options_from(values["from_image"], values)
    settings: SampleConfig = from_dict(SampleConfig, values, "command line")
    if settings.prompts_file is None:
        _check_few(settings)
    elif settings.prompts or settings.from_image:
        raise ValueError("--prompts-file takes the place of PROMPT and of --from: give one of them")
    return settings, show


def _check_few(settings: SampleConfig) -> None:
    """Check prompts of the command line, and refuse what is for a file of them."""
    if not settings.prompts:
        raise ValueError("no prompt given: give PROMPT, --prompts-file or --from (see --help)")
    if settings.write != "folders" or settings.shard_size is not None:
        raise ValueError("--write and --shard-size are for --prompts-file")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("several processes share a --prompts-file: start one process for prompts on the command line")


def published_options(settings: SampleConfig) -> dict[str, Any]:
    """Parse --given, the facts that published files do not contain.

    Raises:
        ValueError: an unknown name.
    """
    given = apply_overrides({}, list(settings.given))
    for name in given:
        if name not in _GIVEN:
            raise ValueError(f"--given {name}: unknown name; expected one of {', '.join(_GIVEN)}")
    return given


def engine_options(settings: SampleConfig) -> dict[str, Any]:
    """Collect the options of a call that only a model that samples tokens has.

    Raises:
        ValueError: an option is for an unCLIP, or --max-memory is no size.
    """
    others = [*settings.diffusion, *([] if settings.prior is None else ["prior"])]
    if others:
        flag = others[0].replace("_", "-")
        raise ValueError(f"--{flag} is for an unCLIP, and this model samples tokens: leave it out")
    limit = None if settings.max_memory is None else int(parse_size(settings.max_memory, "B", "max-memory"))
    names = ("negative", "keep_rows", "window", "compiled", "batch_size")
    return {name: getattr(settings, name) for name in names} | {"max_memory": limit}


def check_unclip(settings: SampleConfig) -> None:
    """Refuse options that are for models that sample tokens."""
    names = ("negative", "keep_rows", "image_tokenizer", "text_tokenizer", "text_encoder", "max_memory", "batch_size")
    for name in names:
        if getattr(settings, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} is for models that sample tokens, not for an unCLIP")
    if settings.window != 1 or settings.compiled:
        raise ValueError("--window and --compiled are for models that sample tokens, not for an unCLIP")
    if settings.dtype == "int8":
        raise ValueError("--dtype int8 is for models that sample tokens: give float32 or bfloat16")


class SampleFiles:
    """Writes the files of one run to a new folder: a PNG for each kept image, scores.json, grid.png.

    Only what the current page of the grid shows is kept in memory.
    """

    def __init__(self, settings: SampleConfig):
        self.settings = settings
        self.folder: Path | None = None  # created with the first image: an error before leaves no empty folder
        self.model_hash = ""
        self.options = recorded_options(settings)
        self.steps = 0
        self._prompts = 0  # number of prompts written
        self._scores: ScoresFile | None = None
        self._rows: list[Row] = []  # of the grid, not yet written
        self._first = 1  # number of the first of them
        self._pages = 0

    def add(self, result: Result) -> None:
        """Write the images of one prompt, append them to scores.json, and write pages of the grid that are full."""
        from dalle.images.png import generation_texts, write_png

        if self.folder is None:
            self.folder = new_folder(self.settings.out, f"{slug(self.settings.prompts[0])}-{self.settings.seed}")
        self._prompts += 1
        images = []
        for rank, (image, seed) in enumerate(zip(result.images, result.seeds, strict=True)):
            name = f"{self._prompts:02d}-{rank + 1:02d}-seed{seed}.png"
            score = None if result.scores is None else result.scores[rank]
            texts = generation_texts(result.prompt, seed, self.options, self.model_hash, f"dalle {__version__}")
            write_png(image, self.folder / name, texts)
            images.append({"file": name, "prompt": result.prompt, "seed": seed, "score": score})
        if self._scores is None:
            scored_by = None if result.scores is None else "CLIP"
            header = {"model": self.model_hash, "options": self.options, "scored_by": scored_by}
            self._scores = ScoresFile(self.folder / "scores.json", header)
        self._scores.append(images, {"steps": self.steps})
        if self.settings.grid:
            self._add_row(result)

    def _add_row(self, result: Result) -> None:
        from dalle.images.grid import split_to_pages

        scores = [""] * len(result.seeds) if result.scores is None else [f"  CLIP {s:.2f}" for s in result.scores]
        captions = [f"seed {seed}{score}" for seed, score in zip(result.seeds, scores, strict=True)]
        self._rows.append((result.prompt, result.images, captions))
        *full, (self._first, self._rows) = split_to_pages(self._rows, self._first)
        for first, rows in full:
            self._write_page(rows, first)

    def _write_page(self, rows: list[Row], first: int) -> None:
        from dalle.images.grid import labeled_grid
        from dalle.images.png import write_png

        assert self.folder is not None
        self._pages += 1
        name = "grid.png" if self._pages == 1 else f"grid-{self._pages}.png"
        write_png(labeled_grid(rows, first), self.folder / name, {"Software": f"dalle {__version__}"})

    def finish(self) -> Path:
        """Write the last page of the grid; returns the path to show to the user."""
        assert self.folder is not None
        if self._rows:
            self._write_page(self._rows, self._first)
            self._rows = []
        return self.folder / "grid.png" if self.settings.grid else self.folder


def finished_images(run: SampleFiles | None) -> str | None:
    """Complete the files of a run that was broken off, and say where they are; None if it has no image yet."""
    return None if run is None or run.folder is None else f"finished images: {run.finish()}"


def recorded_options(settings: SampleConfig) -> dict[str, Any]:
    """Collect the options that determine an image, besides prompt, seed and the hash of the model."""
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
    options |= {name: value for name in ("prior", "negative") if (value := getattr(settings, name)) is not None}
    for name, file in (("image", settings.image), ("mask", settings.mask)):
        if file is not None and file.is_file():
            options[name] = file_record(file)
    return options


def progress_meter(run: SampleFiles, bar: Any, calls: float) -> Callable[[int, int], None]:
    """Return a progress callback for one of `calls` equal calls that share a bar; also counts decode steps."""
    before = bar.n

    def progress(done: int, total: int) -> None:
        bar.total = round(total * calls)
        bar.update(before + done - bar.n)
        run.steps += 1

    return progress
